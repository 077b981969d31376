"""The lab: real experts, trained here from real data, and every method tried on them.

python -m benchmarks.lab digits        one family
python -m benchmarks.lab               all four, digits first
"""
