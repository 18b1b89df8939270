#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

using Strings = std::vector<std::string>;
const Strings kOff = {"false", "no", "none", "0", "-1"};

// Ways to train that are not built.
std::vector<Refusal> methods() {
  return {
      {"neftune*", "drop it, or set lora-dropout for regularization", kOff},
      {"noisy_embedding_alpha", "drop it, or set lora-dropout for regularization", kOff},
      {"use_dora", "drop it; use-rslora is the variant that is built", kOff},
      {"peft_use_dora", "drop it; use-rslora is the variant that is built", kOff},
      {"dora", "drop it; use-rslora is the variant that is built", kOff},
      {"init_lora_weights",
       "drop it: A is uniform from the seed, B zero; init-adapter takes ready ones",
       {"true"}},
      {"loftq*", "drop it: A is uniform from the seed, B zero; init-adapter takes ready ones", kOff},
      {"modules_to_save", "drop it: adapters alone are trained"},
      {"lora_modules_to_save", "drop it: adapters alone are trained"},
      {"additional_target", "drop it: adapters alone are trained"},
      {"bias", "drop it: biases stay frozen", kOff},
      {"lora_bias", "drop it: biases stay frozen", kOff},
      {"layers_to_transform", "name the modules with target-modules"},
      {"lora_layers_to_transform", "name the modules with target-modules"},
      {"rank_pattern", "give one lora-r"},
      {"alpha_pattern", "give one lora-alpha"},
      {"fan_in_fan_out", "drop it: the layout comes from the model's files", kOff},
      {"lora_fan_in_fan_out", "drop it: the layout comes from the model's files", kOff},
      {"full_finetun*", "drop it: adapters alone are trained", kOff},
      {"adapter", "give bits for the base, init-adapter for an adapter to start from", {"lora", "qlora"}},
      {"finetuning_type", "drop it: adapters alone are trained", {"lora"}},
      {"peft_type", "drop it: adapters are LoRA", {"LORA"}},
      {"task_type", "drop it: models are causal language models", {"CAUSAL_LM"}},
      {"stage", "drop it: training is supervised", {"sft"}},
      {"rl", "drop it: training is supervised", kOff},
      {"inference_mode", "drop it", kOff},
      {"relora*", "drop it", kOff},
      {"torchao*", "give bits and quant-type"},
      {"gptq", "give a Hugging Face folder, a bitsandbytes folder or a GGUF file", kOff},
      {"load_in_16bit", "give bits: 16", kOff},
  };
}

// Where and how it runs.
std::vector<Refusal> machinery() {
  return {
      {"deepspeed*",
       "drop it; set memory, optim: paged_adamw_32bit and gradient-checkpointing to save memory", kOff},
      {"zero_stage",
       "drop it; set memory, optim: paged_adamw_32bit and gradient-checkpointing to save memory", kOff},
      {"fsdp*", "drop it; one device trains, set memory to save memory", kOff},
      {"ddp*", "drop it; one device trains", kOff},
      {"local_rank", "drop it; one device trains", kOff},
      {"tensor_parallel*", "drop it; one device trains", {"false", "1"}},
      {"sequence_parallel*", "drop it; one device trains", {"false", "1"}},
      {"context_parallel*", "drop it; one device trains", {"false", "1"}},
      {"device_map", "give device", {"auto"}},
      {"use_cpu", "give device: cpu", kOff},
      {"no_cuda", "give device: cpu", kOff},
      {"max_memory*", "give memory with a size such as 8GiB"},
      {"torch_compile*", "drop it: nothing is compiled at run time", kOff},
      {"tf32", "drop it: products are bf16 or fp32, see compute-dtype", kOff},
      {"torch_dtype", "give compute-dtype: bf16 or fp32", {"auto"}},
      {"dtype", "give compute-dtype: bf16 or fp32", {"auto"}},
      {"use_liger*", "drop it: lm_head and loss always go in row chunks", kOff},
      {"liger*", "drop it: lm_head and loss always go in row chunks", kOff},
      {"flash_attention", "drop it: attention is always of that kind", {"true", "false"}},
      {"use_flash_attention*", "drop it: attention is always of that kind", {"true", "false"}},
      {"xformers_attention", "drop it: attention has one kernel", {"true", "false"}},
      {"sdp_attention", "drop it: attention has one kernel", {"true", "false"}},
      {"attn_implementation", "drop it: attention has one kernel"},
      {"gradient_checkpointing_kwargs", "drop it; gradient-checkpointing alone decides"},
      {"dataloader*", "drop it; threads serves all", {"true", "false", "0"}},
      {"dataset_num_proc", "drop it; threads serves all"},
      {"dataset_processes", "drop it; threads serves all"},
      {"preprocessing_num_workers", "drop it; threads serves all"},
      {"profile*", "drop it", kOff},
      {"trust_remote_code", "drop it: no code of a model is run", kOff},
      {"model_type",
       "drop it: the family comes from the model's files",
       {"AutoModelForCausalLM", "LlamaForCausalLM"}},
      {"tokenizer_type", "drop it: the tokenizer comes from the model's files", {"AutoTokenizer"}},
      {"tokenizer_name*", "put the tokenizer into the model's folder"},
      {"special_tokens", "put them into the model's tokenizer files"},
      {"tokens", "put them into the model's tokenizer files"},
      {"added_tokens*", "put them into the model's tokenizer files"},
      {"use_fast_tokenizer", "drop it: the tokenizer is read from tokenizer.json", {"true", "false"}},
  };
}

// What is trained on, and what is told to whom.
std::vector<Refusal> data_and_reports() {
  return {
      {"push_to_hub*", "drop it; upload OUT with `hf upload`", kOff},
      {"hub_*", "drop it; upload OUT with `hf upload`", kOff},
      {"wandb*", "drop it; report-to takes tensorboard and html", kOff},
      {"mlflow*", "drop it; report-to takes tensorboard and html", kOff},
      {"comet*", "drop it; report-to takes tensorboard and html", kOff},
      {"use_wandb", "drop it; report-to takes tensorboard and html", kOff},
      {"run_name", "drop it; the run is named by output-dir"},
      {"logging_dir", "drop it; events are in OUT/runs"},
      {"logging_strategy", "drop it; give logging-steps", {"steps"}},
      {"logging_first_step", "drop it; give logging-steps: 1", {"false"}},
      {"saves_per_epoch", "give save-steps"},
      {"save_safetensors", "drop it: weights are always safetensors", {"true"}},
      {"save_only_model", "drop it: checkpoints can always be resumed", kOff},
      {"evals_per_epoch", "give eval-steps"},
      {"eval_on_start", "drop it: the first evaluation is before step 1", {"true"}},
      {"do_train", "drop it: qlora-train trains", {"true"}},
      {"do_eval", "give eval-dataset or eval-fraction", {"true"}},
      {"per_device_eval_batch_size",
       "drop it: evaluation runs inside the arena of per-device-train-batch-size"},
      {"eval_batch_size", "drop it: evaluation runs inside the arena of per-device-train-batch-size"},
      {"eval_accumulation_steps", "drop it: evaluation keeps no logits"},
      {"eval_packing", "drop it: rows that share a pass never see each other", {"true", "false"}},
      {"eval_sample_packing", "drop it: rows that share a pass never see each other", {"true", "false"}},
      {"metric_for_best_model", "drop it: the lowest eval_loss is best", {"loss", "eval_loss"}},
      {"greater_is_better", "drop it: the lowest eval_loss is best", kOff},
      {"batch_size", "give per-device-train-batch-size and gradient-accumulation-steps"},
      {"auto_find_batch_size", "give memory: the plan says what fits", kOff},
      {"group_by_length", "drop it: rows are laid end to end without padding", kOff},
      {"length_column_name", "drop it: rows are laid end to end without padding"},
      {"pad_to_sequence_len", "drop it: rows are laid end to end without padding", {"true", "false"}},
      {"padding_free", "drop it: rows are laid end to end without padding", {"true", "false"}},
      {"packing_strategy", "drop it: documents are placed best-fit", {"bfd"}},
      {"dataset_text_field", "give columns: text=NAME"},
      {"dataset_prepared_path", "drop it: data is prepared in memory"},
      {"dataset_kwargs", "give dataset-format and columns"},
      {"dataset_config*", "give dataset a file or folder"},
      {"dataset_split", "give dataset a file or folder"},
      {"max_train_samples", "give max-steps, or a shorter file"},
      {"max_eval_samples", "give a shorter eval-dataset"},
      {"source_max_len", "give max-seq-length"},
      {"target_max_len", "give max-seq-length"},
      {"remove_unused_columns", "drop it; columns names what is read", {"true", "false"}},
      {"train_on_source", "give train-on-inputs", kOff},
      {"label_smoothing*", "drop it", {"0", "0.0"}},
      {"eval_dataset_size", "give eval-fraction"},
      {"do_predict", "run qlora-generate with the adapter", kOff},
      {"predict_with_generate", "run qlora-eval --generate with the adapter", kOff},
      {"do_mmlu_eval", "run qlora-eval with the adapter", kOff},
      {"mmlu*", "run qlora-eval with the adapter"},
      {"strict", "drop it: unknown keys are always errors", {"true", "false"}},
      {"plugins", "drop it"},
  };
}

}  // namespace

std::vector<Refusal> peer_refusals() {
  std::vector<Refusal> all = methods();
  for (auto part : {machinery(), data_and_reports()})
    for (Refusal& refusal : part) all.push_back(std::move(refusal));
  return all;
}

}  // namespace qlora::tools
