"""Step 1: an LLM is asked for rationales; requests, answers, retries, batches and their cost."""
