"""A tiny GPT-2 trained on Python's own standard library by the Trainer of Hugging Face transformers.

    pip install 'optwatch[huggingface,torch]'
    python examples/with_huggingface.py

Start `optwatch tui` beside it to watch. Without a daemon it trains all the same.
"""

import sysconfig
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from optwatch_agent.huggingface import OptwatchCallback

CONTEXT = 64

sources = sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py"))
text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8).long()
rows = [{"input_ids": row, "labels": row} for row in text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT)]

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_embd=96,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLMLoss",
    )
)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    max_steps=150,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    learning_rate=3e-3,
    warmup_steps=20,
    logging_steps=20,
    eval_strategy="steps",
    eval_steps=50,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=rows[:-64],
    eval_dataset=rows[-64:],
    callbacks=[OptwatchCallback(name="gpt2-stdlib")],  # the one line
)
trainer.train()
print(f"held-out loss {trainer.evaluate()['eval_loss']:.3f}")
