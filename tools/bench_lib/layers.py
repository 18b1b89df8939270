"""A model folder with the first layers of another: what growth with layers is measured on."""

import json
import re
import struct
from pathlib import Path


def first_layers(folder, layers, out):
    """Writes `out`, unless it is there: config.json and model.safetensors of `folder` without the later layers."""
    folder, out = Path(folder), Path(out)
    if out.exists():
        return out
    partial = out.with_name(out.name + ".part")
    partial.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = layers
    (partial / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (partial / name).write_bytes((folder / name).read_bytes())
    with open(folder / "model.safetensors", "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        kept, at = {}, 0
        for name, tensor in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [-1])[0]):
            layer = re.search(r"\.layers\.(\d+)\.", name)
            if name == "__metadata__" or not layer or int(layer[1]) < layers:
                kept[name] = dict(tensor)
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    kept[name]["data_offsets"] = [at, at + end - begin]
                    at += end - begin
        text = json.dumps(kept).encode()
        text += b" " * (-len(text) % 8)
        with open(partial / "model.safetensors", "wb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            for name in kept:
                if name != "__metadata__":
                    begin, end = header[name]["data_offsets"]
                    file.seek(8 + size + begin)
                    target.write(file.read(end - begin))
    partial.rename(out)
    return out
