"""What people give by mistake, as commands in the folder that bad_world.py fills; test_bad_inputs.py runs them.

    COMMAND | WORDS       WORDS must be in the one line that answers it

The commands of EARLY are refused before torch is imported, those of LATE once a model or a codec has been loaded.
"""

EARLY = r"""
sing | verb 'sing' is unknown; choose one of prepare,
generat good.wav | did you mean 'generate'?
codec sing | verb 'sing' is unknown
codec roundtripp good.wav out.wav | did you mean 'roundtrip'?
--volume 11 | give a verb first
generate good.wav --volume 11 | option '--volume' is unknown
generate good.wav --seeds 1 | did you mean --seed?
generate good.wav more.wav | 'more.wav' is one argument too many
generate good.wav --seed | --seed needs a value
codec train audio --out run --stps 3 | did you mean --steps? (codeclm codec train --help)
prepare | AUDIO and OUT are missing
prepare audio | OUT is missing
prefix | VOICE is missing
prefix missing.wav | missing.wav: no such file
prefix good.wav --out voice.wav | a prefix is a .safetensors file
train store | --out is missing
align | TOKENS is missing
align audio | is no token store
align store --epochs 0 | epochs is 0.0; it must be more than 0
align store --codec nocodec | codec 'nocodec' is unknown
finetune audio | --out is missing
transcribe | AUDIO is missing
say | TEXT is missing
convert csm model | DST is missing
codec decompress good.clm | OUT is missing
codec transfer default store | NEW and --codec and --out are missing

generate missing.wav | missing.wav: no such file
generate empty.wav | the file is empty
generate text.wav | cannot be read as audio
generate cut.wav | cut off
generate cut.flac | cut.flac
generate cut.mp3 | cut.mp3
generate header.wav | no samples
generate silent.wav | silent
generate nan.wav | NaN or infinite
generate inf.wav | NaN or infinite
generate short.wav | too short
generate loud.wav | must lie in -1..1
generate cancelling.wav | cancel
generate slow.wav | sample rate 1 Hz
generate fast.wav | sample rate 500000 Hz
generate folder.wav | is a folder
generate nowhere.wav | no such file
generate loop.wav | loop.wav
generate pipe.wav | not a file
generate /dev/zero | not a file
generate https://example.com/a.wav | https://example.com/a.wav: is a web address
generate song.m4a | song.m4a: cannot be read as audio (FFmpeg

generate good.wav --out good.wav | would overwrite what is read
generate good.wav --out link.wav | would overwrite what is read
generate link.wav --out good.wav | would overwrite what is read
generate good.wav --out folder.wav | is a folder
generate good.wav --out text.wav/out.wav | text.wav
generate good.wav --out - | give the name of a file
generate good.wav --out out.m4a | choose one of .wav
generate good.wav --duration 0 | --duration
generate good.wav --duration -1 | --duration
generate good.wav --duration nan | --duration
generate good.wav --duration 1e9 | at most a day
generate good.wav --duration inf | at most a day
generate good.wav --stream - --report | --report: of no use with --stream
generate good.wav --duration long | --duration must be a number
generate good.wav --seed -1 | --seed
generate good.wav --seed 1e9 | --seed must be a whole number
generate good.wav --seed 99999999999999999999 | --seed
generate good.wav --temperature nan | --temperature
generate good.wav --temperature 0.8,-1 | --temperature is -1.0
generate good.wav --text-temperature inf | --text-temperature
generate good.wav --temperature 0.8,hot | --temperature must be a number, not 'hot'
generate good.wav --top-k -5 | --top-k
generate good.wav --top-k 5,1.5 | --top-k must be a whole number, not '1.5'
generate good.wav --top-p 0.9,0 | --top-p is 0.0
generate good.wav --min-p 1 | --min-p is 1.0
generate good.wav --repetition-share 2 | --repetition-share is 2.0
generate good.wav --repetition-frames 0 | --repetition-frames is 0
generate good.wav --guidance nan | --guidance is nan
generate good.wav --guidance 2 | --guidance needs --text: it weighs the text
generate good.wav --keep-codebooks 0 | 0 codebooks are to be kept; it must be 1 to 7
generate good.wav --keep-codebooks 3 --model model | 3 codebooks are to be kept; it must be 1 to 2
generate good.wav --keep-codebooks 1 --duration 2 --stop-at-end | --duration and --stop-at-end: of no use with --keep-
generate --keep-codebooks 1 | --keep-codebooks needs PROMPT
generate good.wav --then short.wav --duration 1 | too short
generate good.wav --then good.wav | --then needs PROMPT and --duration
generate good.wav --then link.wav --duration 1 --out good.wav | would overwrite what is read
generate good.wav --then good.wav --duration 1 --stream - | --stream: of no use with --then
generate good.wav --best-of 3 | --best-of needs --then
generate good.wav --then good.wav --duration 1 --best-of 0 | --best-of
generate missing.jsonl --out new | missing.jsonl: no such file
generate empty.jsonl --out new | empty.jsonl: holds no line
generate broken.jsonl | many prompts need a folder
generate broken.jsonl --out text.wav | many prompts need a folder
generate broken.jsonl --out text.th | is a file, not a folder
generate broken.jsonl --out new --with-prompt | --with-prompt: of no use with .jsonl
generate good.wav --max-prompt-s 0 | --max-prompt-s
generate good.wav --max-prompt-s nan | --max-prompt-s
generate good.wav --threads 0 | --threads
generate good.wav --threads few | --threads must be a whole number, not 'few'
generate good.wav --threads 100000 | --threads
generate good.wav --device gpu | --device 'gpu' is unknown
generate good.wav --model missing | missing: no such model folder
generate good.wav --model text.wav | holds no model
generate good.wav --model no-weights | holds no model
generate good.wav --model empty | holds no model
generate good.wav --model run | holds no model
generate good.wav --text hello --model model | has no text stream

say hello --best-of 0 | --best-of
say hello --model model | the model 'model' has no text stream; train one with --model.text.layout mixed
say hello --model missing | no such model folder
say "" | TEXT is empty
say hello --voice missing.wav | missing.wav: no such file
say hello --voice silent.wav | silent
say hello --voice audio | is a folder
say hello --voice good.wav --out good.wav | would overwrite what is read
say hello --out said.txt | said.txt
say hello --duration 0 | --duration
say hello --seed -1 | --seed
say hello --stop-at-end | --stop-at-end: of no use with say

evaluate store --given-text --model model | --given-text: the model 'model' has no text stream
evaluate hearing --given-text | --given-text: of no use with these pairs

transcribe missing.wav --model model | no such file
transcribe good.wav --model model | has no text stream
transcribe good.wav --model missing | no such model folder
transcribe good.wav --model model --max-s 0 | --max-s
transcribe good.wav --model model --format doc | --format
transcribe audio --model model | is a folder
transcribe good.wav --beam-size 0 | --beam-size
transcribe good.wav --ngram-weight -1 | --ngram-weight
transcribe good.wav --texts missing.txt | --texts missing.txt: no such file
transcribe good.wav --texts good.wav | --texts good.wav: is not UTF-8 text
transcribe good.wav --texts empty.jsonl | --texts empty.jsonl: holds no text

evaluate missing | no such file or folder
evaluate empty | no audio file
evaluate notes | no audio file
evaluate text.wav | cannot be read as audio
evaluate audio --asr | --asr: of use only with --continuations N
evaluate audio --out kept --prompt-s 1 | --prompt-s and --out: of use only with --continuations N
evaluate audio --duration 2 | --duration: of use only with --continuations N
evaluate audio --continuations 2 --baseline-data audio | --baseline-data: of no use with --continuations
evaluate audio --continuations 2 --limit 3 --bf16 | --bf16 and --limit: of no use with --continuations
evaluate audio --continuations -1 | --continuations
evaluate audio --continuations 1 --prompt-s nan | --prompt-s
evaluate audio --continuations 1 --prompt-s 60 | none of 6 audio files can be continued
evaluate audio --continuations 1 --out text.wav | is a file
evaluate bad --continuations 3 | none of
evaluate audio --baseline-data missing | missing: no such file or folder
evaluate audio --baseline-data text.wav | cannot be read as audio
evaluate audio --baseline-data other-store --model model | holds tokens of codec
evaluate other-store --model model | holds tokens of codec
evaluate audio --limit -1 | --limit
evaluate audio --split heldout | audio is no token store; that of a run on audio is RUN/tokens
evaluate audio --run runs/x | --run: of use only with --split heldout or training
convert store audio new | audio: is no token store (store.json is missing)
evaluate audio --context-frames 1 | --context-frames
evaluate audio --bootstrap-samples 0 | --bootstrap-samples
evaluate audio --frames-per-batch 0 | --frames-per-batch
evaluate audio --scope big | --scope 'big' is unknown
evaluate audio --seed -1 | --seed
evaluate audio --json folder.wav | is a folder
evaluate audio --json text.wav/a.json | text.wav
evaluate audio --json - | give the name of a file
evaluate audio --model missing | no such model folder
evaluate audio --model model --codec other/codec | model has its own codec; only a CSM or Moshi may lack it
evaluate audio --model my_model:mine | no module 'my_model' here, nor where Python looks
evaluate audio --model json:mine | module 'json' has no 'mine'
evaluate audio --model json:dumps --device cpu --continuations 2 | --continuations and --device: of no use with an
evaluate missing.jsonl | missing.jsonl: no such file
evaluate empty.jsonl | empty.jsonl: holds no pair of recordings
evaluate broken.jsonl | broken.jsonl, line 1: 'prompt' is unknown; allowed are better, worse
evaluate pairs.jsonl --limit 3 --scope fine | --scope and --limit: of no use with these pairs
evaluate pairs.jsonl --pairs 20 --speech audio | --pairs and --speech: of no use with these pairs
evaluate pairs.jsonl --window-s nan | --window-s
evaluate pairs.jsonl --against audio | audio: holds no results of pairs (suite.json is missing)
evaluate pairs.jsonl --out text.wav | is a file
evaluate pairs.jsonl --continuations 2 | pairs.jsonl: cannot be read as audio
evaluate audio --suite cloze | --suite 'cloze' is unknown; choose one of swuggy, sblimp, storycloze, salmon
evaluate missing --suite salmon | missing: no such folder
evaluate empty --suite salmon | empty: holds no pair of recordings
evaluate audio --suite swuggy | audio/0.wav: its name does not begin with a number and '_' (swuggy)
evaluate audio --against new | --against: of use only where DATA is pairs
evaluate audio --pairs 20 --window-s 1 | --window-s and --pairs: of use only where DATA is pairs
evaluate hearing --pairs 1 | --pairs
evaluate hearing | datasets/speech: has no folder of a voice
evaluate hearing --speech missing | missing: has no folder of a voice
evaluate hearing --speech empty | empty: has no folder of a voice
evaluate probes | datasets/speech: has no folder of a voice
evaluate probes --speech missing | missing: has no folder of a voice
evaluate probes --window-s 1 --limit 3 | --window-s and --limit: of no use with 'probes'
evaluate probes --continuations 2 | --continuations: of no use with 'probes'
evaluate probes --model codeclm.inference.evaluate.flattened_llama:random_llama | looks into the layers of a model

verify missing | no such model folder
verify empty | holds no model
verify --json folder.wav | is a folder
verify --threads 0 | --threads
verify model --device tpu | --device 'tpu' is unknown

doctor | DATA or RUN is missing
doctor missing | missing: no such file or folder
doctor audio missing | missing: no such file or folder
doctor empty | no audio file
doctor text.wav | cannot be read as audio
doctor audio --limit 0 | --limit
doctor audio --limit nan | --limit
doctor audio --codec nocodec | codec 'nocodec' is unknown
doctor audio --json folder.wav | is a folder
doctor audio --bundle bug.tar | must end in .zip
doctor audio --bundle text.wav/bug.zip | text.wav
doctor codec-run | holds the training of a codec
doctor broken-run | config.json

prepare missing new | no such file or folder
prepare empty new | no audio file
prepare text.wav new | cannot be read as audio
prepare audio text.wav | is a file, not a folder
prepare audio new --codec nocodec | codec 'nocodec' is unknown
prepare audio new --codec text.wav | codec 'text.wav' is unknown
prepare audio new --codec empty | holds no codec
prepare audio new --copies 0 | --copies
prepare audio new --shard-mb 0 | --shard-mb is 0.0
prepare audio new --batch-s -1 | --batch-s
prepare audio new --rank 1 | --rank and --world-size: give both
prepare audio new --rank 2 --world-size 2 | --rank is 2; it must be 0 to 1
prepare audio new --rank 0 --world-size 0 | --world-size is 0
prepare audio new --rank 0 --world-size 2 --commit | --rank, --commit and --ray: give one of them
prepare missing.jsonl new | missing.jsonl: no such file
prepare audio new --num-workers -1 | --num-workers
prepare audio new --files-per-shard 0 | --files-per-shard
prepare audio new --max-utterance-s nan | --max-utterance-s
prepare audio new --max-utterance-s inf | --max-utterance-s
prepare audio new --device nowhere | --device

train missing --out new | no such file or folder
train empty --out new | no audio file
train store --out text.wav | is a file, not a folder
train store --out new --codec nocodec | codec 'nocodec' is unknown
train store --out new --steps 0 | --steps
train store --out new --steps -5 | --steps
train store --out new --steps 1.5 | --steps must be a whole number
train store --out new --optimizer.learning-rate nan | --optimizer.learning-rate
train store --out new --optimizer.learning-rate -1 | --optimizer.learning-rate
train store --out new --optimizer.warmup-steps -1 | --optimizer.warmup-steps
train store --out new --batch.heldout-share 1 | --batch.heldout-share
train store --out new --batch.text.say 0.9 | each must be at least 0, and all together at most 1
train store --out new --batch.text.voice-s 0 | voice-s is 0.0
train store --out new --batch.max-frames 0 | --batch.max-frames
train store --out new --depth-fraction 0 | --depth-fraction
train store --out new --dropout 1 | --dropout
train store --out new --seed -1 | --seed
train store --out new --model.preset huge | --model.preset 'huge' is unknown; choose one of default, tiny
train store --out new --model.depth.conditioning x | --model.depth.conditioning 'x' is unknown
train store --out new --model.backbone.dim 0 | --model.backbone.num-layers
train store --out new --init-from missing.gguf | missing.gguf: no such
train store --out new --init-from text.wav | is a file
train store --out new --init-from empty | holds no checkpoint

finetune missing --out new | no such file or folder
finetune audio --out new --from missing | no such model folder
finetune other-store --out new --from model | holds tokens of codec
finetune audio --out new --steps 0 | --steps
finetune audio --out new --evaluate-every 0 | --evaluate-every
finetune audio --out new --model.preset tiny | option '--model.preset' is unknown
finetune audio --out new --model.text.layout first | option '--model.text.layout' is unknown
finetune audio --out new --lora.rank -1 | --lora.rank
finetune audio --out new --lora.alpha inf | --lora.alpha
finetune audio --out new --lora.rank 2 --text.layout first | exclude each other
finetune audio --out new --text.layout first --text.numbers xx | numbers are not known in the language 'xx'
finetune audio --out new --text.layout first --text.phonemes fr | phonemes are not known for 'fr'; choose
finetune audio --out new --copies 0 | --copies
finetune audio --out new --replay missing | missing: no such file or folder
finetune audio --out new --replay other-store --from model | holds tokens of codec
finetune audio --out new --replay self --replay-share 1 | --replay-share
finetune audio --out new --compare audio | --compare 'audio' is not NAME=DATA
finetune audio --out new --compare others=missing | missing: no such file or folder
finetune audio --out new --compare a=audio a=audio | a name was given twice

codec transfer missing store store --codec spectral --out new | no such model folder
codec transfer default store audio --codec spectral --out new | audio: is no token store
codec transfer default store store --codec nocodec --out new | codec 'nocodec' is unknown
codec transfer default store store --codec spectral --out audio | exists already

patterns missing --out new | no such file or folder
patterns store --out new --minutes 0 | --minutes
patterns store --out new --minutes nan | --minutes
patterns store --out new --patterns spiral | spiral
patterns store --out text.wav | is a file

tokenizers missing --out new | missing: no such file or folder
tokenizers good.wav --out new | good.wav: is one file; give a folder of recordings
tokenizers store --out new | store
tokenizers audio --out text.wav | is a file
tokenizers audio --out new --codec mp3 | codec 'mp3' is unknown
tokenizers audio --out new --codec mulaw mulaw | name each once
tokenizers audio --out new --codec spectral:4 spectral-4 | codec 'spectral-4' is unknown
tokenizers audio --out new --budget 0 | --budget is 0.0
tokenizers audio --out new --clips 0 | --clips
tokenizers audio --out new --model.delays 0 1 | --model.delays does nothing here

convert jpeg model new | choose one of csm, moshi, text
convert csm missing new | missing: no such folder
convert csm empty new | holds no checkpoint
convert csm text.wav new | is a file
convert csm model audio | audio: exists already
convert csm default new --back | has no Mimi
convert csm missing new --back | missing: no such folder
convert text missing.gguf new | no such file or folder
convert text model new --back | has no way back
convert text model new --depth huge | --depth 'huge' is unknown
convert text model new --pattern spiral | --pattern 'spiral' is unknown
convert text model new --seed -1 | --seed
convert csm model new --depth tiny | --depth: for text models only

report | AUDIO is missing
report missing | no such file or folder
report notes | no audio file
report audio --limit-s 0 | --limit-s
report audio --continuations -1 | --continuations
report audio --prompt-s nan | --prompt-s
report audio --duration 0 | --duration
report audio --files 0 | --files
report audio --out text.wav | is a file, not a folder
report audio --model nowhere | nowhere
demo --duration 0 | --duration
demo --duration nan | --duration
demo --seeds -1 | --seed
demo --seeds | a seed is missing
demo --out text.wav | is a file, not a folder
demo --model nowhere | nowhere: no such model folder

codec train missing --out new | no such file or folder
codec train empty --out new | no audio file
codec train audio --out text.wav | is a file, not a folder
codec train audio --out new --steps 0 | --steps
codec train audio --out new --learning-rate nan | --learning-rate
codec train audio --out new --batch-size 0 | --batch-size
codec train audio --out new --heldout missing | missing: no such file or folder
codec train audio --out new --seed -1 | --seed

codec roundtrip missing.wav out.wav | no such file
codec roundtrip good.wav good.wav | would overwrite what is read
codec roundtrip good.wav link.wav | would overwrite what is read
codec roundtrip good.wav out.xyz | choose one of .wav
codec roundtrip good.wav folder.wav | is a folder
codec roundtrip good.wav - | give the name of a file
codec roundtrip audio out.wav | is a folder
codec roundtrip nan.wav out.wav | NaN or infinite
codec roundtrip good.wav out.wav --codec spectrel | codec 'spectrel' is unknown
codec roundtrip good.wav out.wav --codec empty | holds no codec
codec roundtrip good.wav out.wav --threads 0 | --threads

codec report missing | no such file or folder
codec report notes | no audio file
codec report audio --codec | a codec is missing
codec report audio --codec spectral nocodec | codec 'nocodec' is unknown
codec report audio --limit -1 | --limit
codec report audio --language fr | --language needs --asr
codec report audio --html folder.wav | is a folder
codec report audio --json text.wav/a.json | text.wav

codec contract nocodec | codec 'nocodec' is unknown
codec contract empty | holds no codec
bench huge | shape 'huge' is unknown
bench --batch 0 | --batch is 0
bench --with-codec | --with-codec needs --model
bench --model missing | no such model folder
codec bench nocodec | codec 'nocodec' is unknown
codec bench spectral --random wavenet | --random 'wavenet' is unknown
codec bench spectral --duration 0 | --duration
codec bench spectral --rounds 0 | --rounds
codec bench spectral --hours nan | --hours
codec bench spectral --hours -1 | --hours
codec bench spectral --audio missing.wav | no such file
codec bench spectral --device tpu | --device 'tpu' is unknown
codec bench spectral --threads 0 | --threads

codec compress missing.wav out.clm | no such file
codec compress good.wav good.wav | would overwrite what is read
codec compress good.wav out.clm --model missing | no such model folder
codec compress silent.wav out.clm | silent
codec decompress missing.clm out.wav | no such file
codec decompress audio out.wav | is a folder, not a .clm file
codec decompress text.clm out.wav | is not a .clm file
codec decompress good.clm good.clm | good.clm
codec decompress good.clm out.clm | choose one of .wav

serve --model missing | missing: no such model folder
serve --host 0.0.0.0 | --host 0.0.0.0: others can reach it there, so it needs --token
serve --port 70000 | --port is 70000
serve --token short | --token must be 16 to 256
serve --max-sessions 0 | --max-sessions is 0
serve --max-duration inf | --max-duration is inf
serve --client-rate -1 | --client-rate is -1
serve --device gpu | --device 'gpu' is unknown
serve --threads 0 | --threads
"""

LATE = r"""
generate good.wav --model cut-weights | model.safetensors
generate good.wav --model nan-weights | NaN
generate good.wav --model no-json | config.json
generate good.wav --model a-list | config.json
generate good.wav --model unknown-setting | unknown setting
generate good.wav --model wrong-type | norm_eps
generate good.wav --model huge | dim
generate good.wav --model other-codec | trained on
generate good.wav --model flipped | model.safetensors
generate good.wav --model flipped-codec | codec
generate good.wav --model model --top-k 1,2,3,4 | top_k has 4 numbers; this model has 3 codebooks
verify no-json | config.json
verify cut-weights | model.safetensors
verify flipped | model.safetensors
evaluate good.wav --model model | --baseline-data
evaluate store --model other-codec | trained on
evaluate cut-store --model model | cut-store
evaluate flipped-store --model model | flipped-store
evaluate no-json-store --model model | no-json-store
evaluate wrong-type-store --model model | wrong-type-store
evaluate unfinished-store --model model | unfinished-store
evaluate bad --model model | none of
evaluate pairs.jsonl --model model | none of 1 pairs can be used (first: 1: missing.wav: no such file)
evaluate pairs.jsonl --model other-codec | trained on
doctor bad | none of
doctor audio bad | none of
prepare bad new --codec model/codec | none of
prepare empty.jsonl new --codec model/codec | empty.jsonl: names no audio
prepare broken.jsonl new --codec model/codec | broken.jsonl: names no audio
prepare audio new --codec model/codec --split test | a split is chosen of a Hugging Face dataset
prepare audio new --codec model/codec --streaming | streaming are for datasets of the hub
prepare audio new --codec model/codec --commit | shards are missing: shard 0
prepare audio other-store --codec model/codec | holds tokens of codec
prepare audio new --codec list-codec | list-codec
prepare audio new --codec dict-codec | dict-codec
prepare audio new --codec cut-codec | cut-codec
prepare audio new --codec text.th | text.th
prepare audio new --codec pickle.th | pickle.th
prepare audio new --codec spectral:99 | num_codebooks
prepare audio new --codec spectral:0 | num_codebooks
train store --out new | holds tokens of codec
train cut-store --out new --codec model/codec | cut-store
train bad --out new --codec model/codec | none of
finetune bad --out new --from model | none of
finetune audio --out new --from no-json | config.json
finetune flipped-store --out new --from model | flipped-store
convert csm model new | model_type is
convert moshi model new | model_type is
convert text model new | cannot be expressed
tokenizers bad --out new --codec mulaw | none of
tokenizers audio --out new --codec cut-codec | cut-codec
tokenizers audio --out new --codec mulaw | no held-out recording lasts 2 s
tokenizers audio --out new --codec mulaw --prompt-s 1 --budget 1e-9 | give at least
codec roundtrip good.wav out.wav --codec list-codec | list-codec
codec contract cut-codec | cut-codec
codec compress good.wav out.clm --model no-json | config.json
codec decompress cut.clm out.wav --model model | cut off
codec decompress flipped.clm out.wav --model model | damaged
codec decompress good.clm out.wav | was compressed with model
codec train bad --out new | can be used
"""


def cases(table: str) -> list[tuple[str, str]]:
    """(command, words) of each line."""
    lines = [line for line in table.splitlines() if line]
    return [(command.strip(), words.strip()) for command, words in (line.split(" | ") for line in lines)]
