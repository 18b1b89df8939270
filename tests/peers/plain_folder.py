"""plain_folder.py GGUF FOLDER: the weights as transformers decodes them, rounded to bf16, written in fp32.

In fp32, because bitsandbytes' backward decodes to the type that the weights had: with bf16 there, its
gradients would come from other weights than its forward."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
source = Path(sys.argv[1])
decoded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
# A model that came from a GGUF counts as quantized there and cannot be saved: a new one takes its values.
del decoded.config.quantization_config
for key in (
    "_model_name_or_path",
    "unk_token_id",
):  # what its GGUF reader leaves there; no config of a Llama has them
    vars(decoded.config).pop(key, None)
plain = AutoModelForCausalLM.from_config(decoded.config)
plain.load_state_dict(
    {name: value.to(torch.bfloat16).float() for name, value in decoded.state_dict().items()}
)
plain.save_pretrained(sys.argv[2])
