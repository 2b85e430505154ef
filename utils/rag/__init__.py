"""Step 5: rerank, generate, measure."""
