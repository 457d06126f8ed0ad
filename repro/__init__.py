"""The `vggc` command, and the experiments of arXiv:1409.1556."""
