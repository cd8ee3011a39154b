"""The engine: requests of different tasks, each under its own head mask, decoded in one batch.

From the outside in:

    request.py        what goes in and comes out
    exceptions.py     what may go wrong
    config.py         the limits
    engine.py         the loop and its thread
    steps.py          one step of the loop: encode, prefill, decode
    ticket.py         an accepted request: its rows, and who waits for them
    ledger.py         requests and their rows: answered, failed, cancelled
    sequence.py       one row: its states, its finish reason, its times
    scheduler.py      who waits, who runs, in which slot
    isolation.py      one bad row costs no other
    encoding.py       each clip is encoded once
    audio_cache.py    and not again when it comes again
    model_runner.py   encode, prefill, decode
    draft.py          parts of answers guessed before they are generated
    greedy.py         the choice of the next token
    chunk.py          what a forward pass takes of a row
    packed.py         the forward pass on a CPU: no padding, no silenced heads
    padded.py         the forward pass of every other decoder and device: padded, under a gate
    decode_graphs.py  decode steps that are recorded once and replayed, on a GPU
    kv_cache.py       keys and values of the running rows, by slot
    observer.py       what the metrics are told

Only model_runner.py and what is below it compute with tensors (packed.py stands on packed_attention.py,
single_rows.py, head_slices.py and packed_check.py).
"""
