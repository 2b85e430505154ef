"""Step 2: passages are encoded, indexed and searched; candidates of each question."""
