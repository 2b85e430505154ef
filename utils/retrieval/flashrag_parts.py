"""Import what is used of FlashRAG's retriever package, and keep all threads.

On a machine without a GPU this import sets OpenMP, and with it torch and faiss, to one thread for the whole process.
The number of threads from before is set again.
"""

import faiss
import torch

_torch_threads, _faiss_threads = torch.get_num_threads(), faiss.omp_get_max_threads()

from flashrag.retriever.retriever import DenseRetriever  # noqa: E402
from flashrag.retriever.utils import pooling, set_default_instruction  # noqa: E402

torch.set_num_threads(_torch_threads)
faiss.omp_set_num_threads(_faiss_threads)

__all__ = ["DenseRetriever", "pooling", "set_default_instruction"]
