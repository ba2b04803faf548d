"""Quantization `sqft`: stamped INT4 folders in vLLM, with mask and codes kept after loading; other widths dequantized.

1. method.py   in vLLM's registry: whose folder is this?
2. config.py   the configuration of one of ours, pickled to every worker; which layers are ours
3. loading.py  the compact form, and other widths (dequantized.py), unpacked on their way through vLLM's loader
4. linear.py   a layer after loading: its shard goes to an operator (sources.py: which modules and rows it holds)
5. choice.py   which operator that is: sparse_, vllm_ or torch_operator.py (interface: operators.py)
"""
