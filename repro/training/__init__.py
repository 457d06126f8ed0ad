"""Training as Sect. 3.1 of arXiv:1409.1556 describes it, on one process or many."""
