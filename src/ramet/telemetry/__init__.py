"""Where an operation's time goes, told once and seen three ways: in its answer, as histograms, as spans."""
