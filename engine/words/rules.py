"""The sentences of every rule: what is wrong, what to do about it, and a line of help for those of the check."""

from __future__ import annotations

# rule id -> (what is wrong, what to do). Grouped by who raises them; each id appears in a test.
RULES: dict[str, tuple[str, str]] = {
    # --- a row of a dataset (engine/check.py) ---
    "not-json": ("this is not JSON: {reason}", "{remedy}"),
    "nan": ("{word} is not a JSON value", "write a number, or null where nothing is known, or delete the row"),
    "number-range": ("a number is too large to be read", "write it as text in quotes or delete the row"),
    "too-deep": ("the record is nested too deeply to be read", "flatten it or delete the row"),
    "too-long": (
        "the record is longer than {limit_mib} MiB",
        "split it, or check that each record ends with a newline",
    ),
    "lone-surrogate": (
        "the text holds half of a character (a lone surrogate such as \\ud800)",
        "write the whole character or remove it",
    ),
    "encoding-row": (
        "byte {byte} at position {position} of the line is not UTF-8{guess}",
        "save the file as UTF-8 and upload it again, or delete the row",
    ),
    "csv-cells": (
        "the row has {found} cells, the header {wanted}",
        "put text that holds a separator or a quote in double quotes, or delete the row",
    ),
    "csv-broken": (
        "the quotes of this row do not match ({reason})",
        'close each opened quote and write "" for a quote inside text, or delete the row',
    ),
    "duplicate-key": (
        'the field "{found}" stands twice in one object, and programs differ in which one they read',
        "keep one of the two or delete the row",
    ),
    "not-object": ("this is {found}, not an object with named fields", 'write {{"field": ...}} or delete the row'),
    "missing-field": ("{where} is missing (the row has: {found})", "add it or delete the row"),
    "null-field": ("{where} is null", "add {wanted} or delete the row"),
    "wrong-type": ("{where} is {found} instead of {wanted}", "write {wanted} or delete the row"),
    "blank-field": ("{where} is blank", "add text or delete the row"),
    "unknown-role": ('{where} is "{found}", which is no known role', "use one of {known}"),
    "empty-messages": ("{where} is an empty list", "add the messages or delete the row"),
    "no-assistant": ("{where} has no assistant turn, so there is no answer to learn", "add one or delete the row"),
    "last-not-assistant": (
        "{where} ends with a turn that is not the assistant's, so there is no answer to judge",
        "end it with the assistant's answer or delete the row",
    ),
    "not-an-answer": (
        "{where} is a turn of {found}, where the assistant's answer should begin",
        "begin with the assistant's turn, or with an exact copy of the prompt",
    ),
    "not-text-part": (
        "{where} is {found}, and only text is trained on",
        "leave that part out or delete the row",
    ),
    "media-column": (
        "{where} holds images, sound or video, and only text is trained on",
        "leave the column out if the text makes sense alone, or delete the row",
    ),
    "empty-assistant": (
        "{where} has neither text nor tool calls",
        "add the assistant's answer or delete the row",
    ),
    "equal-pair": (
        "{where} and {other} are the same, so there is nothing to prefer",
        "make them different or delete the row",
    ),
    "no-shared-prompt": (
        "{chosen} and {rejected} do not begin with one shared prompt",
        'add a "prompt" field with the question, or delete the row',
    ),
    "label-not-boolean": ("{where} is {found}, not true or false", "write {wanted} without quotes"),
    "choices-invalid": (
        "choices must be a list of at least two different texts, one of them the completion; {reason}",
        "correct the list or leave it out",
    ),
    "steps-length": (
        "{steps} steps in completions but {labels} in labels",
        "give each step exactly one label or delete the row",
    ),
    "tools-not-json": ("{where} is not valid JSON", "write the list of tools as JSON or leave it out"),
    "other-layout": (
        "this row is laid out as {found}, the file as {wanted}",
        "rewrite the row like the others, or move it to a file of its own",
    ),
    "bom": ("the file starts with a byte order mark", "nothing to do: it is skipped when the file is read"),
    "duplicate-row": ("this row repeats {first} exactly", "delete it unless the repetition is meant"),
    "ends-without-assistant": (
        "{where} ends with a turn of {role}; what follows the last answer is not trained",
        "end it with an assistant turn, or leave it if that is meant",
    ),
    "system-not-first": (
        "{where} is a system message after the start; many models expect it first",
        "move it to the front if the model's template asks for that",
    ),
    "same-role-twice": (
        "{where} has the same role as the message before it",
        "join the two if the model's template wants turns to alternate",
    ),
    "blank-prompt": ("{where} is blank beside other text", "add text if the model should see a question here"),
    "one-sided-labels": (
        "every label is {label}, so good and bad cannot be told apart",
        "add rows with the other label",
    ),
    "over-window": (
        "the row is {tokens} tokens long and the model reads {window}, so its end is cut off",
        "shorten or split it, or choose a model with a longer window",
    ),
    "over-window-estimate": (
        "about {share} % of the rows are longer than the {window} tokens the model reads (estimated from {counted} rows "
        "of the {long} that are long enough), so their ends are cut off",
        "shorten or split them, or choose a model with a longer window",
    ),
    "overlap": (
        "this row asks what line {line} of the validation data asks, so its score would be too good",
        "take it out of one of the two",
    ),
    "near-duplicate": ("this row repeats {first} but for white space", "delete it unless the repetition is meant"),
    "contradiction": (
        "the same answer to the same question was judged the other way in row {first}",
        "decide which label is right and delete the other row",
    ),
    "special-token": (
        "{where} holds {found}, a mark that chat templates put in themselves",
        "remove it: written in the text it would end or begin turns",
    ),
    "placeholder": ("{where} holds {found}, a placeholder that was never filled in", "fill it in or delete the row"),
    "replacement-character": (
        "{where} holds �, which stands for letters that were lost",
        "export the text again as UTF-8, or delete the row",
    ),
    "prompt-in-answer": (
        "{where} begins with the whole question, so the model learns to repeat it",
        "cut the question off the answer",
    ),
    "personal-data": (
        "{where} holds what looks like {found}, which a trained model may repeat to anyone",
        "replace it by an invented one, or delete the row",
    ),
    "length-bias": (
        "the better answers are {which} in {share} % of pairs (effect size {effect}), so length is learned too",
        "add pairs where it is the other way round",
    ),
    "label-balance": (
        "{good} answers are marked good and {bad} bad, which is out of balance",
        "for KTO set the weight of the {name} answers to {weight}, or add rows of the rarer label",
    ),
    "unused-columns": ("not used for training: {found}", "nothing to do unless one of them holds the text to learn"),
    # --- a whole file (engine/check.py) ---
    "empty-file": ("the file is empty", "choose a file with at least one row"),
    "encoding": ("the text is encoded as {found}, not as UTF-8", "save it again as UTF-8 and upload it once more"),
    "not-data": ("this is {found}, not rows of data", "{remedy}"),
    "unknown-layout": (
        "the columns {found} are none of the known layouts",
        "say on the Data page, or with --map COLUMN=NAME, which of them is what, or rename them to one of these: {known}",
    ),
    "csv-header": (
        "the first row of the table cannot name its columns: {reason}",
        "write one short name for each column in the first row",
    ),
    "bad-parquet": ("the Parquet file cannot be read: {reason}", "write it again, or save it as JSON Lines"),
    "mapping-target": ('no column can stand for "{target}"', "choose one of: {known}"),
    "mapping-twice": ("two columns are to stand for {target}, one of them {column}", "map only one of them to it"),
    "mapping-column": ('there is no column "{column}" (the file has: {found})', "write a column's name as it is there"),
    "bad-gzip": ("the compressed file is damaged or cut off", "compress it again, or upload it unpacked"),
    "gzip-bomb": ("the file unpacks to more than {times} times its size", "unpack it yourself and look at it first"),
    # --- uploads (engine/uploads.py) ---
    "upload-not-allowed": ("this page may not send files any more", "reload the page and choose the file again"),
    "upload-too-large": (
        "the file is larger than {limit_mib} MiB",
        'choose "A file on this machine", or split it',
    ),
    "upload-no-room": (
        "{free_mib} MiB are free on the disk, and this file needs {needed_mib} MiB to be stored and checked",
        "free some space and try again",
    ),
    "upload-broken": ("the upload broke off before the file was whole", "choose the file again"),
    "upload-not-written": ("the upload could not be written: {reason}", "check the disk and try again"),
    "job-ended": (
        "the check ended before it was done, most often because the machine ran out of memory",
        "try again; nothing that was stored has changed",
    ),
    "row-gone": ("there is no row {row} to change", "reload the page and open the row again"),
    "row-not-json": ("row {row} as it was written anew is not JSON", "complete it, or delete the row"),
    "tokenizer-none": (
        "tokens can be counted when the tokenizer.json of {base} is on this machine",
        "choose a base that is here, or load this one once by training with it",
    ),
    "tokenizer-broken": ("the tokenizer or chat template of {base} cannot be read", "copy or download the model again"),
    "mask-nothing": (
        "no token of these rows would be trained with this base",
        "check that each row has an answer that fits the window of {window} tokens",
    ),
    "preview-failed": ("the preview could not be made: {reason}", "choose another base, or try again"),
    # --- stored datasets and the files they come from (engine/datasets.py) ---
    "file-missing": ("there is no file {path}", "check the path"),
    "file-is-folder": ("{path} is a folder", "name one file in it"),
    "file-no-permission": (
        "{path} may not be read or written by this user",
        "change its permissions, or copy the file",
    ),
    "disk-full": ("the disk is full", "free some space and try again; nothing that was stored has changed"),
    "file-unreadable": ("{path} could not be read or written: {reason}", "check the disk and try again"),
    "no-dataset": ("there is no dataset {dataset}", "choose one from the list on the Data page"),
    "dataset-damaged": ("the stored dataset {dataset} cannot be read", "delete it and add the file again"),
    "dataset-in-use": ("the run {run} uses this dataset", "keep it, or delete that run first"),
    "dataset-name": ("a dataset needs a name", "write at least one visible character"),
    "nothing-to-keep": ("no row would be left after dropping the bad ones", "correct the file and add it again"),
    # --- settings (engine/spec.py, engine/preflight.py) ---
    "setting-unknown": ("{where} is not a setting", "see the names on the Train page or in `tunebook train --help`"),
    "setting-value": ("{where} cannot be {value}: {reason}", "choose another value"),
    "recipe-unknown": ("there is no recipe {name}", "choose one of: {names}"),
    "recipe-broken": ("a recipe cannot be read: {reason}", "correct the file or take it away"),
    "benchmark-unknown": ("there is no benchmark {name}", "choose one of: {names}"),
    "rank-too-large": (
        "a rank of {rank} is larger than the model's layers, which are {hidden} wide",
        "choose a rank of at most {hidden}; 8 to 64 is usual",
    ),
    "block-too-large": (
        "rotated blocks of {size} are larger than the model's layers, which are {hidden} wide",
        "choose a block size of at most {hidden}; 32 is usual",
    ),
    "quantize-full": (
        "all weights cannot train while they are held in {bits} bits",
        "set quantize to none, or choose an adapter: lora or oft",
    ),
    "targets-unknown": (
        "this base has no modules called {names}",
        "set it to all-linear, or choose among {known}",
    ),
    "window-too-long": (
        "rows of {length} tokens do not fit the model, which reads {window}",
        "set the longest row to {window} or less",
    ),
    "replay-same": (
        "the general rows are the very rows that are trained on",
        "choose other rows for train.replay_data, or leave it out: then the base writes its own",
    ),
    "replay-data": (
        "the data {id} cannot be mixed in: {reason}",
        "choose rows with answers, or texts, that passed the check, or leave train.replay_data out",
    ),
    "needs-held-out": (
        "no rows are held out, so nothing says which weights are best or when to stop",
        "raise the held-out share (dataset.eval_share) above 0, or name evaluation data; or leave this setting off",
    ),
    "unsloth-missing": (
        "Unsloth is not installed here",
        "install it (make unsloth, or pip install 'tunebook[unsloth]'), or set machine.backend to auto",
    ),
    "unsloth-apple": (
        "Unsloth is not used on Apple's GPU",
        "set machine.backend to auto or plain",
    ),
    "unsloth-broken": (
        "Unsloth is installed and cannot be loaded: {reason}",
        "mend the installation (make unsloth), or set machine.backend to plain",
    ),
    "unsloth-cannot": (
        "Unsloth does not train {what}: it does SFT, and DPO and KTO with LoRA, on a base in 16 or 4 bits",
        "set machine.backend to auto or plain",
    ),
    "unsloth-layout": (
        "Unsloth has no fast path for this kind of model ({layout})",
        "set machine.backend to auto or plain",
    ),
    "padding-free": (
        "rows without padding would see each other: that takes SFT, a GPU and FlashAttention",
        "leave train.padding_free open",
    ),
    "no-bf16": ("this card does not compute in bf16", "set machine.precision to auto or fp32"),
    "replay-sft-only": (
        "general rows can only be mixed into questions with answers (SFT)",
        "set the replay share to 0; beta and the learning rate decide how much is forgotten here",
    ),
    "beta-range": (
        "beta = {beta} is outside {least} to {most}",
        "choose 0.01 to 0.5; 0.1 is usual, and a higher one keeps closer to the base",
    ),
    "kto-weights": (
        "KTO takes two weights above 0, of good and of bad rows",
        "write them as [1.0, 1.3], or leave them out: they follow from the counts",
    ),
    "kto-batch": (
        "a batch of {size} is too small for KTO, which compares the answers of a batch with each other",
        "set the batch size to {least} or more, and lower the accumulation instead",
    ),
    "ppo-no-reward": (
        "PPO needs a reward model, and no finished run here judges at least {least} of unseen pairs right",
        "train the recipe reward on pairs first, with this base; or let `tunebook chain` do all steps in turn",
    ),
    "ppo-reward-missing": (
        "{ref} has made no reward model",
        "name a finished run of the recipe reward as run:<id>, or leave it empty for the newest that fits",
    ),
    "ppo-not-reward": (
        "{ref} is no reward model: its objective is {objective}",
        "name a finished run of the recipe reward, or leave it empty for the newest that fits",
    ),
    "ppo-reward-unknown": (
        "nobody knows how well {ref} judges: no pair was held out when it was trained",
        "train it again with dataset.eval_share above 0",
    ),
    "ppo-reward-weak": (
        "the reward model {ref} judges {found} of {n} unseen pairs as the person did, and at least {least} is asked for",
        "train it on more pairs or for longer; or lower objective_args.least_reward_accuracy, knowing that PPO will then "
        "learn its mistakes",
    ),
    "ppo-tokenizer": (
        "the reward model {ref} reads text otherwise than this base: another tokenizer or chat template",
        "train a reward model on this base, or choose the base that it was made from",
    ),
    "ppo-no-loss": (
        "PPO has no held-out loss to go by",
        "set early stopping to 0 and leave out keeping the best; fewer epochs or a higher beta end nearer to the start",
    ),
    "ppo-window": (
        "an answer of {tokens} tokens leaves no room for a question within {length}",
        "lower objective_args.answer_tokens or raise train.max_length",
    ),
    "checkpoint-broken": (
        "{checkpoint} is cut short or damaged, and there is no earlier one",
        "duplicate the run and start it anew; what was trained until then is lost",
    ),
    "memory-too-small": (
        "this run needs {low} to {high} of memory by the estimate, and {device} has {have}",
        "{remedy}",
    ),
    "disk-too-small": ("{free} MiB are free on the disk, and this run needs about {needed} MiB", "free some space"),
    # --- the data of a run (engine/preflight.py, engine/train) ---
    "dataset-none": ("no data is chosen", "choose a data set, or upload one on the Data page"),
    "dataset-missing": ("there is no data set {id}", "choose one from the list, or upload it again"),
    "data-type": (
        "this recipe learns from {wanted} rows, and the data is {type}",
        "choose other data or another recipe",
    ),
    "data-bad-rows": (
        "{bad} of {rows} rows have errors",
        "leave them out on the Data page (or with --drop-bad-rows), or correct the file",
    ),
    "data-too-few": ("the data has {rows} row", "add rows: a few hundred is a good start, two is the least"),
    "data-eval": (
        "the evaluation data cannot be scored with this recipe",
        "choose data of the same kind without errors",
    ),
    "kto-one-label": (
        "every answer is marked {label}, and KTO learns from the difference between good and bad ones",
        "add answers with the other mark, or train on the good ones as questions with answers (SFT)",
    ),
    "data-nothing-trained": (
        "no token would be trained: within {length} tokens no answer begins",
        "set train.max_length to {needed} or more, or shorten the questions",
    ),
    "data-template": (
        "the base's chat template hides where answer {turn} of a row begins, so it cannot be masked",
        "choose another base, or write the data as prompt and completion",
    ),
    # --- bases (engine/bases.py) ---
    "base-unknown": (
        "{ref} is no base model",
        "write starter, the path of a folder, a Hugging Face id such as owner/name, or run:<id>",
    ),
    "base-missing": ("there is no folder {folder}", "check the path; it must hold config.json and *.safetensors"),
    "base-run": ("{ref} has made no model yet", "choose a finished run"),
    "reward-plain": (
        "{where} cannot be set for a reward model in this version",
        "train it with LoRA, OFT or all weights, unquantised, on all layers",
    ),
    "base-reward": (
        "{ref} is a reward model: it gives answers a score and writes none",
        "choose the model it was made from, or another one that writes text",
    ),
    "base-no-config": ("{folder} has no readable config.json", "choose the folder of a saved transformers model"),
    "base-no-weights": ("{folder} has no *.safetensors file", "choose a folder with saved weights"),
    "base-pickle": (
        "{folder} has only *.bin weights, which can run code when they are opened",
        "convert the model to safetensors first",
    ),
    "base-broken-weights": ("a weights file in {folder} is cut off or damaged", "copy or download the model again"),
    "base-no-tokenizer": ("{folder} has no tokenizer", "copy tokenizer.json from where the model came from"),
    "base-remote-code": (
        "{folder} wants to run code of its own, which Tunebook never does",
        "choose a model whose architecture is part of transformers",
    ),
    "devices-kind": (
        "several devices cannot share a run with {setting} {value}; they can with {sound}",
        "set machine.devices to 1",
    ),
    "devices-missing": (
        "{devices} devices were asked for, and there are {most}",
        "set machine.devices to {most} or less",
    ),
    "devices-share": (
        "{devices} devices cannot share a step of {batch} rows in {passes} passes evenly",
        "choose an accumulation or a batch size that {devices} divides",
    ),
    "base-architecture": (
        "this transformers cannot train a model of the kind {kind}",
        "choose a model of another kind, such as llama, qwen2, qwen3, mistral or gpt2",
    ),
    "base-no-end-token": (
        "the tokenizer in {folder} names neither a padding token nor an end token, so rows of a batch cannot be filled up",
        'add "eos_token" to its tokenizer_config.json, or choose another model',
    ),
    "quantize-apple": (
        "Apple's GPU cannot hold a base in fewer bits in this version",
        "take lora instead of qlora, or train on the processor (TUNEBOOK_DEVICE=cpu)",
    ),
    "base-not-here": (
        "{ref} is not on this machine yet",
        "download it first; a download that is stopped goes on where it ended",
    ),
    # --- the hub (engine/hub.py) ---
    "hub-gated": (
        "{id} asks for permission: its licence must be accepted on {host} first",
        "accept it on the model's page, then give a token that may read it",
    ),
    "hub-gated-refused": (
        "the token given has no permission to read {id}",
        "ask for access on its page at {host} with the account of the token, or give another token",
    ),
    "hub-token": ("{host} does not know this token", "copy it again, or make a new one that may read"),
    "hub-forbidden": (
        "{host} does not let this token read {id}",
        "give the token the permission to read it, or give another token",
    ),
    "hub-not-found": (
        "there is no {id} on {host}, or it is private",
        "check the id for a slip; a private one needs a token that may read it",
    ),
    "hub-revision": ("{id} has no revision {revision}", "leave the revision out, or copy the commit from its page"),
    "hub-file": ("a file of {id} is not on the hub any more", "look the model up again"),
    "hub-id": ("{id} is no id of the hub", "write it as owner/name, or owner/name@revision"),
    "hub-unreachable": (
        "{host} cannot be reached, so {id} cannot be had",
        "connect to the internet or set HF_ENDPOINT to a mirror; what is on this machine works without",
    ),
    "hub-offline-asked": (
        "HF_HUB_OFFLINE is set, so {id} cannot be looked up",
        "take the setting away, or choose a model that is on this machine",
    ),
    "hub-answer": ("what answers at {host} is not the hub", "check HF_ENDPOINT and the proxy, then try again"),
    "hub-status": ("{host} answered with an error ({status}) for {id}", "try again in a while"),
    "hub-pickle": (
        "{id} has only weights that can run code when they are opened (.bin, .pt), and these are never taken",
        "choose a model with *.safetensors, or ask its author to convert it",
    ),
    "hub-no-weights": ("{id} holds no *.safetensors weights", "choose the model it was made from, or another one"),
    "hub-no-config": ("{id} has no config.json", "choose a repository that holds a transformers model"),
    "hub-corrupt": (
        "{file} of {id} arrived damaged: its hash is not the one the hub names. It was thrown away",
        "download again; if it happens twice, check the disk and the mirror",
    ),
    "hub-disk": (
        "the disk has {free} MiB free, and {id} needs {needed} MiB",
        "free some space, or set HF_HOME to a larger disk",
    ),
    "hub-store": (
        "{id} could not be stored: {reason}",
        "check the folder of the hub's cache (HF_HOME), then try again",
    ),
    "hub-data-none": (
        "{id} holds no Parquet, JSON Lines, JSON or CSV file",
        "choose another data set, or download it yourself and bring the file",
    ),
    "hub-data-part": ("{id} has no such config or split", "choose one of: {names}"),
    "hub-data-kinds": (
        "the files of this split of {id} cannot be joined ({names})",
        "choose another split, or download them yourself and bring one file",
    ),
    "mix-part": ("{name} cannot be part of a mix: {reason}", "take it out, or mend it first"),
    "mix-weights": (
        "a mix needs two or more data sets with weights above 0",
        "write a weight for each, such as 3 and 1",
    ),
    # --- runs that fail (engine/failures.py) ---
    "diverged-loss": (
        "the loss is no longer a number after step {step}: the weights have run away",
        "start again with a lower learning rate; what was saved before is untouched",
    ),
    "run-peer": (
        "one of the processes that share this run has ended, and the others with it ({error})",
        "read the log for the first that ended; most often memory ran out: use fewer devices or a smaller batch",
    ),
    "run-disk-full": (
        "the disk is full",
        "free some space, then resume the run; everything saved before is untouched",
    ),
    "run-oom-gpu": (
        "the GPU ran out of memory",
        "halve the batch size and double the accumulation, shorten the rows, or turn on gradient checkpointing",
    ),
    "run-oom": ("the machine ran out of memory", "lower the batch size, shorten the rows, or choose a smaller base"),
    "run-killed": (
        "the training process was killed, most often because the machine ran out of memory",
        "lower the batch size or choose a smaller base, then resume the run",
    ),
    "run-oom-killed": (
        "the system killed the training process because the machine ran out of memory",
        "lower the batch size, shorten the rows or choose a smaller base, then start again",
    ),
    "run-access": (
        "the model cannot be had: it asks for permission ({error})",
        "ask for access on the model's page, give a token that has it, then resume the run",
    ),
    "run-not-found": (
        "the model was not found ({error})",
        "check the id and the revision for a slip; a private model needs a token",
    ),
    "run-network": (
        "the hub could not be reached ({error})",
        "connect to the internet and resume the run, or choose a model that is on this machine",
    ),
    "run-driver": (
        "the graphics driver or CUDA does not work with this torch ({error})",
        "update the driver, or install the torch that fits it; an empty CUDA_VISIBLE_DEVICES trains on the processor",
    ),
    "run-version": (
        "a library is missing or of another version ({error})",
        "install again with the constraints file (make setup), then resume the run",
    ),
    "run-signal": ("the training process was ended by {signal}", "resume the run; if it happens again, read the log"),
    "run-bug": ("something unexpected went wrong: {error}", "read the log; if the settings look right, report it"),
    "model-load": ("the base could not be loaded: {reason}", "check the base; a hub id needs the internet once"),
    "tracker-missing": (
        "{name} is not installed here",
        "install it with: pip install {package}, or set train.report_to to none",
    ),
    # --- taking a run elsewhere (engine/export.py, engine/elsewhere.py) ---
    "export-nothing": ("this run has made no model yet", "wait until it has finished"),
    "export-on-run": (
        "this adapter stands on what another run made, so nobody could load it alone",
        "take the merged model instead",
    ),
    "export-disk": (
        "{free} MiB are free in {folder}, and the merged model needs about {needed} MiB",
        "free some space, or choose a folder on another disk; nothing was written",
    ),
    "export-differs": (
        "the merged model does not say the same as the unmerged one: logits are off by {off} %, allowed are {allowed} %",
        "merge into float32 instead, or use the adapter with its base; nothing was kept",
    ),
    "export-in-the-way": ("{folder} is there already", "name a folder that is new or empty"),
    "export-checkout": (
        "there is no convert_hf_to_gguf.py in {folder}",
        "name the folder of a llama.cpp checkout: git clone https://github.com/ggml-org/llama.cpp",
    ),
    "export-gguf": (
        "llama.cpp could not convert the model: {reason}",
        "run its command by hand to see more: {command}",
    ),
    "export-reward-gguf": ("a reward model gives scores, and llama.cpp writes text", "take the merged model instead"),
    "export-repository": ('"{name}" cannot be the name of a repository', "write it as owner/name"),
    "export-token": (
        "the hub does not let this token write there",
        "give a token that may write (huggingface.co/settings/tokens), or log in with: hf auth login",
    ),
    "export-hub": (
        "the hub could not take it: {reason}",
        "try again; what was uploaded before is not visible to anyone",
    ),
    "export-busy": ("another export of this run is under way", "wait until it has ended"),
    "export-killed": (
        "the export was ended before it was done, most often because the machine ran out of memory",
        "close what needs memory and try again; nothing half-written is kept",
    ),
    "elsewhere": ("{tool} cannot do what this run did: {reason}", "{remedy}"),
    # --- benchmarks and evaluations (engine/benchmarks, engine/evaluations.py, engine/train) ---
    "bench-choices": (
        "choices must be a list of at least two different texts; {reason}",
        "correct the list or delete the row",
    ),
    "bench-answer": (
        "the answer {answer} is none of the {n} choices",
        "write the number of the right one, 0 to {last}, or its exact text",
    ),
    "bench-kind": (
        "the question has no choices, reference or form to be scored by (the row has: {found})",
        "add choices and answer, or the reference answer",
    ),
    "bench-mixed": (
        "this row is scored by its {found}, the rows before by their {wanted}",
        "move it to a file of its own",
    ),
    "bench-form": ("{where} cannot be used: {reason}", "correct it or delete the row"),
    "bench-twice": ("this asks the same as line {first}", "nothing to do: it is asked once"),
    "bench-encoding": ("the line is not UTF-8", "save the file as UTF-8"),
    "bench-too-large": ("the file is larger than {limit_mib} MiB", "keep fewer questions: some thousands say enough"),
    "bench-one-item": (
        "{n} questions cannot show a change",
        "add more: 100 questions show a drop of about 10 points, 1,000 one of about 3",
    ),
    "bench-hub": (
        "the benchmark {name} could not be fetched: {reason}",
        "connect to the internet once, or choose one that ships with Tunebook",
    ),
    "evaluate-none": ("no benchmark is named", "name one of: {names}"),
    "evaluate-reward": ("{ref} is a reward model and writes no answers", "evaluate the model it judges"),
    "tokenizers-differ": (
        "{base} and {tuned} split text into tokens differently, so their scores cannot be compared item by item",
        "compare the model with the base it was made from",
    ),
    # --- sweeps (engine/sweeps.py) ---
    "sweep-empty": ("the sweep has no point", "name at least one recipe and one seed"),
    "chat-ended": ("the process that holds the model has ended", "ask once more; it is started again"),
    "chat-memory": ("the memory is not enough for this model", "choose fewer models, or wait until no run trains"),
    "chat-busy": ("others are chatting, and there is no memory for one more model", "try again in a few minutes"),
    "chat-too-long": (
        "the conversation has {tokens} tokens, and this model reads {window}",
        "begin a new conversation",
    ),
    "chat-no-votes": ("there are no votes yet", "mark some answers first"),
    "sweep-large": ("the sweep has {n} runs", "keep it to {most}: fewer settings, recipes or seeds"),
    "sweep-unknown": ("there is no ready-made sweep {name}", "choose one of: {names}"),
    "sweep-unfinished": (
        "{n} of {total} runs did not finish",
        "read their logs, then resume the sweep: what is finished is not run again",
    ),
    "sweep-broken": ("a ready-made sweep cannot be read: {reason}", "correct the file or take it away"),
    "sweep-point": ("{point}: {problem}", "{remedy}"),
    # --- a hosted demo (engine/demo.py) ---
    "demo-full": (
        "this demo has no room for more visitors or data at the moment",
        "come back later, or run Tunebook on your own machine",
    ),
    "demo-path": ("this demo reads no files of its own machine", "upload the file, or take a sample"),
    "demo-parquet": ("this demo takes no Parquet files", "save the rows as JSON Lines or CSV"),
    "demo-unpacked": (
        "the file unpacks to more than {most_mib} MiB, the most this demo takes",
        "upload fewer rows; on your own machine there is no such limit",
    ),
    "demo-rows": (
        "the file has {rows} rows; this demo takes at most {most}",
        "upload fewer rows; on your own machine there is no such limit",
    ),
    "demo-disk": (
        "your data and runs take {used} MiB of the {most} MiB that a visitor of this demo has",
        "delete data or runs that you no longer need",
    ),
    "demo-model": (
        "this demo trains {models} and what your own runs made, nothing else",
        "choose one of these; on your own machine any model can be used",
    ),
    "demo-export": (
        "this demo neither uploads to the hub nor converts to GGUF",
        "download the model and do it on your own machine",
    ),
    "demo-kind": ("this demo starts no run of the kind {kind}", "use Tunebook on your own machine for it"),
    "demo-benchmark": ("{name} would have to be downloaded, which this demo does not do", "choose another benchmark"),
    "demo-limit": (
        "{where} comes to {value}; this demo allows at most {most}",
        "lower it; on your own machine there is no such limit",
    ),
    "demo-steps": (
        "the run would take {steps} steps; this demo allows at most {most}",
        "lower the epochs, or set Most steps to {most}",
    ),
    "demo-own-runs": (
        "{n} of your runs go on or wait; this demo allows at most {most} a visitor",
        "wait until one has ended, or stop one on the Runs page",
    ),
    "demo-queue": ("{n} runs of all visitors go on or wait, as many as this demo takes", "try again in some minutes"),
    # --- facts for the advisor (engine/advisor.py) ---
    "fact-number": (
        "{where} cannot be {value}",
        "write a number above 0; until then the advice goes on without it",
    ),
    "fact-word": ("{where} cannot be {value}", "choose one of: {known}; until then the advice goes on without it"),
}

# rule id -> one line of help, for the rules of the check (`tunebook check --rules`). Each has a file in tests/cases.
CHECK_HELP: dict[str, str] = {
    "not-json": "Error. The record is not JSON; what the parser stumbled on and how to mend it.",
    "nan": "Error. NaN and Infinity are no JSON values.",
    "number-range": "Error. A number beyond what programs can hold.",
    "too-deep": "Error. Lists or objects nested beyond sense.",
    "too-long": "Error. One record of more than 64 MiB.",
    "lone-surrogate": "Error. Half of a character, which cannot be written as UTF-8.",
    "encoding-row": "Error. Bytes that are not UTF-8, and which encoding they may be.",
    "csv-cells": "Error. A row of a table with more or fewer cells than its header.",
    "csv-broken": "Error. Quotes of a table that do not match.",
    "duplicate-key": "Error. One field stands twice in an object, so its value is anyone's guess.",
    "not-object": "Error. The record is not an object with named fields.",
    "missing-field": "Error. A field that is needed is not there.",
    "null-field": "Error. A field that is needed is null.",
    "wrong-type": "Error. A field holds another kind of value than is needed.",
    "blank-field": "Error. A text to learn has nothing that can be seen.",
    "unknown-role": "Error. A message of a role that is not known.",
    "empty-messages": "Error. A conversation without messages.",
    "no-assistant": "Error. A conversation without an answer to learn.",
    "last-not-assistant": "Error. A judged conversation that does not end with the answer.",
    "not-an-answer": "Error. An answer that begins with somebody else's turn.",
    "not-text-part": "Error. A message with an image, sound or video.",
    "media-column": "Error. A column of images, sound or video.",
    "empty-assistant": "Error. An answer with neither text nor tool calls.",
    "equal-pair": "Error. The better and the worse answer are the same.",
    "no-shared-prompt": "Error. Two conversations to compare that do not begin alike.",
    "label-not-boolean": "Error. A label that is not true or false.",
    "choices-invalid": "Error. Choices that cannot be scored.",
    "steps-length": "Error. Another number of labels than of steps.",
    "tools-not-json": "Error. Tools that are not JSON.",
    "other-layout": "Error. A row laid out differently from the rest of the file.",
    "bom": "Warning. The file starts with a byte order mark, which is skipped.",
    "duplicate-row": "Warning. A row that repeats an earlier one exactly.",
    "near-duplicate": "Warning. A row that repeats an earlier one but for white space.",
    "contradiction": "Warning. The same answer to the same question was judged both ways.",
    "ends-without-assistant": "Warning. A conversation whose last turn is not trained.",
    "system-not-first": "Warning. A system message after the start.",
    "same-role-twice": "Warning. Two turns in a row by the same speaker.",
    "blank-prompt": "Warning. A question with nothing that can be seen.",
    "one-sided-labels": "Warning. All labels are the same.",
    "special-token": "Warning. Marks of a chat template inside a text.",
    "placeholder": "Warning. A {{placeholder}} that was never filled in.",
    "replacement-character": "Warning. A letter that was lost in an earlier conversion.",
    "prompt-in-answer": "Warning. An answer that begins with its whole question.",
    "personal-data": "Warning. What looks like an e-mail address, a key or a card number.",
    "length-bias": "Warning. Better answers are nearly always longer, or shorter.",
    "label-balance": "Warning. Far more good answers than bad ones, or fewer; the weights that make up for it.",
    "over-window": "Warning, with a base. A row of more tokens than the model reads, counted.",
    "over-window-estimate": "Warning, with a base. The share of rows longer than the model reads, from a sample.",
    "overlap": "Warning, with validation data. A row that asks what the validation data asks.",
    "unused-columns": "Warning. Columns that are not used for training.",
    "empty-file": "Error of the file. It has no rows.",
    "encoding": "Error of the file. It is not UTF-8, and which encoding it is.",
    "not-data": "Error of the file. It is something else: an image, a web page, an archive, plain text.",
    "unknown-layout": "Error of the file. Its columns are those of no known layout; a mapping can say what they mean.",
    "csv-header": "Error of the file. The first row of the table cannot name its columns.",
    "bad-parquet": "Error of the file. A Parquet file that is damaged.",
    "bad-gzip": "Error of the file. A gzip file that is damaged or cut off.",
    "gzip-bomb": "Error of the file. It unpacks to hundreds of times its size.",
    "mapping-column": "Error of the file. A mapped column is not there.",
}
