"""The peer: transformers + PEFT + bitsandbytes on the CPU, as little arranged as can be."""

import contextlib
import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()
IGNORED = -100


def load_base(folder, checkpointing=False):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    model.config.use_cache = False
    return model


def dense_base(folder):
    """The same weights, decoded once: no product decodes them again."""
    import bitsandbytes as bnb

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, bnb.nn.Linear4bit):
                weight = bnb.functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
                linear = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                linear.weight.data = weight.float().reshape(linear.weight.shape)
                setattr(parent, name, linear)
    for attribute in ("quantization_method", "hf_quantizer"):  # PEFT and transformers take it for quantized by these
        if hasattr(model, attribute):
            delattr(model, attribute)
    model.is_quantized = model.is_loaded_in_4bit = False
    model.config.use_cache = False
    return model


def new_adapter(model, r=16, alpha=32):
    return get_peft_model(
        model,
        LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


def old_adapter(model, folder):
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


def tokenizer(folder):
    tok = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tok.chat_template = (folder / "chat_template.jinja").read_text()
    return tok


def precision(name):
    return torch.autocast("cpu", dtype=torch.bfloat16) if name == "bf16" else contextlib.nullcontext()


def answer_rows(path, tok):
    """Messages rows as (ids, labels): the loss on the answer and its <|im_end|>."""
    end = tok.convert_tokens_to_ids("<|im_end|>")
    rows = []
    for line in open(path, encoding="utf-8"):
        messages = json.loads(line)["messages"]
        prompt = tok.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        asked = tok(prompt, add_special_tokens=False)["input_ids"]
        answer = tok(messages[-1]["content"], add_special_tokens=False)["input_ids"] + [end]
        rows.append((asked + answer, [IGNORED] * len(asked) + answer))
    return rows


def batch(rows):
    """Rows padded on the right to the longest one."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for i, (tokens, wanted) in enumerate(rows):
        ids[i, : len(tokens)], mask[i, : len(tokens)] = torch.tensor(tokens), 1
        labels[i, : len(tokens)] = torch.tensor(wanted)
    return ids, labels, mask


def loss_sum(model, rows):
    """Summed cross-entropy in fp32 and the number of tokens in it; the head runs for those tokens only."""
    ids, labels, mask = batch(rows)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    keep = labels[:, 1:] != IGNORED
    logits = causal.lm_head(hidden[keep]).float()
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][keep], reduction="sum"), int(keep.sum())


def train(model, batches, rate, compute):
    """One step a batch at rate(step), AdamW as PyTorch has it, norm clipped at 1; the losses before each step.

    Stays in train mode: in eval mode bitsandbytes repacks the weights with bf16 scales on CPUs that have
    AVX512-BF16.
    """
    values = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(values, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    model.train()
    losses = []
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        with precision(compute):
            total, count = loss_sum(model, rows)
            loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(model, rows, compute="fp32", size=10):
    model.train()
    total = count = 0
    for i in range(0, len(rows), size):
        with precision(compute):
            part, n = loss_sum(model, rows[i : i + size])
        total, count = total + part.item(), count + n
    return total / count
