"""Faults that were found by use: with models and data as people have them, and by what a run leaves behind."""

from __future__ import annotations

from .fault import Fault
from .hostile_faults import HOSTILE_FILES

_ANSWERS = "tests/data/test_answers.py::"
_ATOMIC = "tests/io/test_atomic.py::"
_CHECKPOINT = "tests/train/test_checkpoint.py::"
_DATASET = "tests/train/test_dataset.py::"
_EXAMPLES = "tests/examples/test_examples.py::"
_FLAGS = "tests/cli/test_flags.py::"
_FOREIGN = "tests/io/test_foreign_files.py::"
_FORMATS = "tests/data/test_formats.py::"
_HOSTILE = "tests/io/test_tokenizer_hostile.py::"
_README = "tests/architecture/test_readme.py::"
_RUNS = "tests/train/test_runs.py::"
_SPLIT = "tests/data/test_split.py::"
_VOCABULARY = "tests/train/test_vocabulary.py::"

FOUND_BY_USE = [
    Fault(
        "Any part of a GGUF file that is split in two.",
        "The logits of the whole model.",
        (
            "GGUF files: in two parts",
            "GGUF files: in two parts, no tensor in the first",
            "tests/io/test_gguf_split.py::test_any_part_gives_the_tensors_of_all_parts",
        ),
    ),
    Fault(
        "Part 1 without part 2, also where nothing but the head is in part 2.",
        "Refused: part 2 is missing. It is not read as a tied model.",
        (
            "GGUF files: part 1 of 2, part 2 is missing",
            "GGUF files: part 1 of 2 without part 2, which has only the head",
            "tests/io/test_gguf_split.py::test_what_is_missing_is_named",
        ),
    ),
    Fault(
        "tie_word_embeddings is true, and the file stores another lm_head.weight.",
        "The stored head is used, and said.",
        (
            "safetensors directory: tied, and another head stored",
            "safetensors directory: saved from a stored head that was to be tied",
            "tests/models/test_hf_directory.py::test_a_stored_head_is_kept_where_config_json_says_it_is_the_embedding",
        ),
    ),
    Fault(
        "rope_theta at the top level, and another one in rope_parameters.",
        "The one in rope_parameters is used, and said.",
        (
            "config.json: rope_theta at top level and another in rope_parameters",
            "tests/models/test_hf_directory.py::test_the_inner_rope_theta_counts_and_the_outer_is_said_to_be_ignored",
        ),
    ),
    Fault(
        "A SentencePiece vocabulary in GGUF with equal scores and with merges.",
        "The merges decide.",
        (
            "tokenizer.ggml: scores all the same, with merges",
            _HOSTILE + "test_merges_decide_where_the_scores_are_all_the_same",
        ),
    ),
    Fault(
        "A GGUF file whose end token has the type NORMAL.",
        "It is one token, a control token, and it is trained.",
        (
            "tokenizer.ggml: the end token of type 1, byte level",
            "tokenizer.ggml: the end token of type 1, SentencePiece",
            _HOSTILE + "test_the_end_token_of_a_gguf_file_is_one_token_whatever_its_type",
        ),
    ),
    Fault(
        "A GGUF file without token types.",
        "The end token is one token, as in llama.cpp.",
        (
            "tokenizer.ggml: token_type absent, byte level",
            "tokenizer.ggml: token_type absent, SentencePiece",
            _HOSTILE + "test_the_end_token_of_a_gguf_file_is_one_token_whatever_its_type",
        ),
    ),
    Fault(
        "Special tokens that only added_tokens_decoder in tokenizer_config.json names.",
        "Each is one id; the beginning and the end are those that are named there.",
        (
            "tokenizer.json: special tokens only in added_tokens_decoder",
            "tokenizer.json: special tokens only in added_tokens_decoder of a LlamaTokenizer",
            _HOSTILE + "test_special_tokens_known_to_one_file_alone",
        ),
    ),
    Fault(
        "Special tokens that only special_tokens_map.json names.",
        "Each is one id; the beginning and the end are those that are named there.",
        (
            "tokenizer.json: special tokens only in special_tokens_map.json",
            "tokenizer.json: special tokens only in special_tokens_map.json, as texts",
            _HOSTILE + "test_special_tokens_known_to_one_file_alone",
        ),
    ),
    Fault(
        "A model with three end tokens that is merged and saved.",
        "All of them are kept, in config.json and in generation_config.json.",
        (
            "config.json: llama: eos_token_id [5, 7, 9]",
            "tests/models/test_save.py::test_end_tokens_of_config_json_alone_are_kept_in_both_files",
            "tests/models/test_save.py::test_a_merged_model_is_whole",
            _HOSTILE + "test_every_end_token_is_kept_by_saving",
        ),
    ),
    Fault(
        "Messages with weight 0, or with train or trainable false.",
        "They are left out of the loss.",
        (
            "data records: weight 0",
            "data records: train false",
            "data records: trainable false",
            _FORMATS + "test_messages_marked_as_not_trained_are_left_out_of_the_loss",
            _ANSWERS + "test_answers_that_are_left_out_are_not_trained",
        ),
    ),
    Fault(
        "Examples whose prompt is longer than a row.",
        "How many are left out, and why, is said before training and in the summary.",
        (_DATASET + "test_what_is_left_out_cut_or_not_used_is_said_before_training_and_in_the_summary",),
    ),
    Fault(
        "Full training over a GGUF file with rope_freqs that config.json cannot express.",
        "Refused before the first step.",
        (
            _VOCABULARY + "test_full_training_over_factors_that_no_directory_expresses_is_refused_before_it_starts",
            "safetensors directory: saved from a GGUF file with rope_freqs of llama3 scaling",
        ),
    ),
    Fault(
        "A template that writes the date, and a resume on the next day.",
        "The run resumes with its own date.",
        (_RUNS + "test_a_resumed_run_keeps_its_date", "tests/io/test_template_values.py::test_a_run_keeps_its_date"),
    ),
    Fault(
        "A conversation that begins with the assistant, also with a template that reads messages[0].",
        "It is trained as transformers writes it, or refused with file and line where the template refuses it.",
        (
            "chat templates: smollm2: begins with an answer",
            "chat templates: qwen3: begins with an answer",
            _ANSWERS + "test_a_conversation_that_begins_with_an_answer",
        ),
    ),
    Fault(
        "A template that drops the thinking of earlier turns (R1-distill, Qwen3).",
        "The mask is right, and training on prompts needs none.",
        (
            "chat templates: r1_distill: two turns",
            "chat templates: r1_distill: thinking in one turn",
            "chat templates: qwen3: two turns",
            "chat templates: qwen3: thinking in one turn",
            "tests/data/test_answers_peers.py::test_the_mask_is_that_of_generation_blocks_or_the_place_is_refused",
            _ANSWERS + "test_training_on_prompts_needs_no_places",
        ),
    ),
    Fault(
        "A directory that GPTQ quantized, or bitsandbytes to int8 or fp4.",
        "Refused: it is quantized, and by what.",
        (
            "safetensors directory: quantization_config of bitsandbytes, int8",
            "safetensors directory: bitsandbytes 4-bit tensors",
            "safetensors directory: quantization_config of gptq",
            "safetensors directory: GPTQ tensors",
            "tests/models/test_hf_directory.py::test_a_quantized_directory_says_by_what",
        ),
    ),
    Fault(
        "The checkpoint of a bare decoder, without model. before its names.",
        "It is read where transformers has a head for it.",
        (
            "safetensors directory: a bare decoder, tied",
            "safetensors directory: a bare decoder with lm_head.weight",
            "tests/models/test_hf_directory.py::test_a_bare_decoder_is_read_with_a_tied_head_and_refused_without_one",
        ),
    ),
    Fault("A big-endian GGUF file.", "Refused: it is big-endian.", ("GGUF files: big-endian",)),
    Fault(
        "A tokenizer with one entry more than the model has rows.",
        "It is used where no example needs that token; else the token and the example are named.",
        (
            _VOCABULARY + "test_a_token_that_no_example_needs_is_said_and_the_run_goes_on",
            _VOCABULARY + "test_an_example_that_needs_it_is_named_with_the_token",
        ),
    ),
    Fault(
        "AdamW with weight decay over all weights.",
        "Matrices decay, norms and biases only where it is asked for; --help says so.",
        (
            "weight decay: adamw, tied",
            "weight decay: adamw, untied, decay_norms",
            "tests/train/test_config.py::test_what_decays_is_what_the_trainer_of_transformers_lets_decay",
            _EXAMPLES + "test_help_lists_every_flag_with_its_default",
        ),
    ),
    Fault(
        "Text beside tool_calls in a message.",
        "Both are trained, as the template writes them.",
        (
            "chat templates: qwen3: text beside a call",
            _ANSWERS + "test_calls_are_trained_as_the_template_writes_them",
            _ANSWERS + "test_what_a_template_does_not_write_is_refused_by_name",
        ),
    ),
]

NOTHING_LOST = [
    Fault(
        "A model, an adapter or a second run written into a folder that has other files.",
        "Only files of the same names are replaced, each as a whole; no other file is touched.",
        (
            _FOREIGN + "test_an_output_touches_no_file_of_others",
            _FOREIGN + "test_a_whole_run_touches_no_file_of_others",
            _FOREIGN + "test_a_process_killed_while_it_saves_leaves_the_old_the_new_or_one_sentence",
            "tests/adapters/test_files.py::test_an_existing_adapter_is_replaced_and_other_files_stay",
        ),
    ),
    Fault(
        "A tokenizer and a model saved into one folder, one after the other.",
        "Both are there.",
        (_FOREIGN + "test_a_tokenizer_saved_before_the_model_stays_and_the_other_way_round",),
    ),
    Fault(
        "Links in the place of an output folder or of its files.",
        "They are followed.",
        (
            _FOREIGN + "test_an_output_follows_the_link_of_its_folder_and_of_its_files",
            _ATOMIC + "test_links_are_followed",
        ),
    ),
    Fault(
        "The working directory as the place to save.",
        "It is saved into.",
        (_FOREIGN + "test_the_working_directory_can_be_saved_into",),
    ),
    Fault(
        "Read-only files and folders in the place of an output.",
        "Refused, and nothing has changed.",
        (_FOREIGN + "test_an_output_over_a_read_only_file_or_into_a_read_only_folder_is_refused",),
    ),
    Fault(
        "A second run into the output of a first one, without --resume.",
        "Refused unless --overwrite is given, which also removes the first one's checkpoints.",
        (
            _RUNS + "test_a_second_run_replaces_the_first_only_where_it_is_asked_to",
            _RUNS + "test_whatever_an_earlier_run_left_counts",
        ),
    ),
    Fault(
        "A checkpoint of another run in the output folder.",
        "It is not continued.",
        (
            _RUNS + "test_the_checkpoint_of_another_run_is_not_continued",
            _CHECKPOINT + "test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones",
        ),
    ),
    Fault(
        "Ctrl-C during a run.",
        "The step ends, checkpoint and metrics are written, and the sentence says how to resume.",
        (_RUNS + "test_a_stopped_run_writes_where_it_stands_and_resumes_to_the_same_bits",),
    ),
    Fault(
        "A run without flags for checkpoints.",
        "There is one every 10 minutes and at the end, and the newest two are kept.",
        (
            "tests/train/test_config.py::test_checkpoints_are_on_unless_they_are_switched_off",
            _CHECKPOINT + "test_checkpoints_are_written_by_time_and_at_the_end",
            _CHECKPOINT + "test_the_newest_checkpoints_are_kept_and_other_files_stay",
        ),
    ),
    Fault(
        "Other programs that are busy on the same CPUs.",
        "Threads wait for a bounded time and then sleep; `make bench` measures the speed beside busy neighbours.",
        (
            "tests/kernels/test_team.py::test_regions_of_every_shape_hold",
            "tests/kernels/test_cpu.py::test_which_variable_decides_how_threads_wait",
            "tests/kernels/test_cpu.py::test_no_result_depends_on_how_threads_wait",
        ),
    ),
    Fault(
        "A file of 20 or 50 examples and the default flags.",
        "One example at least is held out, and one at least is trained on.",
        (
            _SPLIT + "test_few_examples_leave_some_on_both_sides",
            _DATASET + "test_twenty_examples_are_enough_and_few_held_out_tokens_are_said_to_say_little",
        ),
    ),
    Fault(
        "A fraction of 0 held out.",
        "All are trained on, and no loss before and after is shown.",
        (
            _SPLIT + "test_a_fraction_of_zero_holds_out_nothing",
            _DATASET + "test_a_fraction_of_zero_trains_on_all_and_compares_nothing",
        ),
    ),
    Fault(
        "The same example many times.",
        "Its copies are all trained on, or all held out.",
        (_SPLIT + "test_equal_texts_are_never_on_both_sides",),
    ),
    Fault(
        "README's snippets, in the root of a checkout beside the installed package.",
        "They run; sources that nobody compiled say so where no package is installed.",
        (
            _README + "test_the_python_blocks_run_one_after_the_other",
            _README + "test_sources_that_nobody_compiled_say_so",
        ),
    ),
    Fault(
        "A shipped configuration, from another folder.",
        "It is found by its name.",
        ("tests/test_config.py::test_a_shipped_file_is_found_by_name_from_any_folder",),
    ),
    Fault(
        "apply_chat_template, and encode of a rendered template.",
        "The first gives ids; the second reads special tokens as such.",
        (
            "tests/io/test_template_values.py::test_ids_are_given_unless_the_text_is_asked_for",
            "tests/io/test_tokenizer.py::test_special_tokens_are_read_from_text_only_when_asked",
        ),
    ),
    Fault(
        "A merge, then save_pretrained.",
        "The directory is whole: transformers reads the model, its tokenizer and its template.",
        (
            "tests/models/test_save.py::test_a_merged_model_is_whole",
            "tests/models/test_save.py::test_transformers_loads_a_merged_model_its_tokenizer_and_its_template",
            "tests/models/test_save.py::test_a_model_from_a_gguf_file_brings_the_tokenizer_of_the_file",
        ),
    ),
    Fault(
        "The shipped configurations as they are.",
        "Each is started: it takes a step, or the memory that it lacks is named.",
        (
            _EXAMPLES + "test_a_shipped_configuration_takes_a_step_of_its_own_shape",
            _EXAMPLES + "test_a_shipped_configuration_beyond_the_machine_is_refused_before_anything_is_read",
        ),
    ),
    Fault(
        "Flags as mlx-lm, TRL and axolotl name them.",
        "The name here is given, or that there is none.",
        (_FLAGS + "test_a_flag_of_another_program_is_named", _FLAGS + "test_the_table_of_other_names_is_sound"),
    ),
    Fault(
        "A flag of one value, given twice.",
        "Refused.",
        (_FLAGS + "test_what_would_be_lost_silently_is_refused", _FLAGS + "test_the_configuration_is_named_once"),
    ),
    Fault(
        "QLoRA over quantized values of a GGUF file that become NF4.",
        "It is said, with how much it changes the weights.",
        (
            "tests/models/test_requantized.py::test_what_requantizing_costs_is_measured_and_said",
            "tests/train/test_requantized.py::test_what_requantizing_costs_is_said_before_training_and_in_the_summary",
        ),
    ),
    Fault(
        "Parquet, gzip, UTF-16 or CSV as data.",
        "The layout is named, with what to do.",
        ("data files: Parquet", "data files: gzip", "data files: UTF-16LE with a mark", "data files: CSV"),
    ),
    Fault(
        "Records of preferences (DPO), or of dolly.",
        "The layout is named, with a command that converts the file.",
        (
            "data records: the layout DPO",
            "data records: the layout dolly",
            _FORMATS + "test_the_command_of_a_refusal_converts_the_file",
        ),
    ),
    Fault(
        "rope_scaling with a factor of 1e-320, rope_theta of 5e-324 and the like.",
        "Refused where rotary angles are not finite.",
        ("tests/models/test_rotary.py::test_rotary_angles_that_are_not_finite_are_refused",),
    ),
    Fault(
        "A held-out set of a few tokens.",
        "It is said how little its loss tells.",
        (
            _DATASET + "test_twenty_examples_are_enough_and_few_held_out_tokens_are_said_to_say_little",
            _DATASET + "test_few_tokens_are_below_what_five_percent_needs",
        ),
    ),
]

FAULTS = [*FOUND_BY_USE, *HOSTILE_FILES, *NOTHING_LOST]
