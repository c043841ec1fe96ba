"""A Llama-style language model, and text for it: streamed from the Hub or read from local files.

From one layer to the whole run, `layers.py`, `loss.py`, `network.py` and `model.py` are the model,
`tokens.py`, `documents.py`, `packing.py`, `loader.py` and `data.py` the data; `names.py` says what
each parameter is called in Hugging Face's `LlamaForCausalLM`. The runs are in `configs/llm/`.
`export.py` makes a folder of Hugging Face's of a trained model, `zero_shot.py` evaluates that.
"""
