"""Channel pruning of any model: its traced graph, its groups of channels, and a smaller model without some of them."""
