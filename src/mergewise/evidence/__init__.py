"""Evidence about models: data, statistics, evaluators."""
