# file: deploy/consumers/fallback-outbox/worker.py
# attempts follow each other without a pause
s/ \+ x\.attempts \* x\.attempts//
