"""The libraries whose imports take a script ten seconds; `tests/forked.py` imports them once, before it forks.

Only imports: a process that has started threads of OpenMP, or has run a model, cannot be forked.
"""

import faiss
import torch

threads = torch.get_num_threads(), faiss.omp_get_max_threads()

import datasets  # noqa: E402, F401
import FlagEmbedding.finetune.reranker.encoder_only.base  # noqa: E402, F401
import flashrag.retriever.index_builder  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import openai  # noqa: E402, F401
import pandas  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401
import transformers.models.bert.modeling_bert  # noqa: E402
import transformers.trainer  # noqa: E402, F401

# Importing FlashRAG sets one thread for the whole process; utils keeps what was set before, and so must this.
torch.set_num_threads(threads[0])
faiss.omp_set_num_threads(threads[1])
