"""Statistics of a model on data; one file a statistic."""
