"""What task vectors change in the outputs of layers, blocks and heads, and weights from that."""
