"""Public corpora -> manifests of the paper's tasks and splits; one file a corpus, read in its real layout."""
