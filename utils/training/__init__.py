"""Steps 2 to 4: scores of the candidates, training groups, fine-tuning of the reranker."""
