"""Step 2: encode and index the corpus, search it, and write each question's candidates."""
