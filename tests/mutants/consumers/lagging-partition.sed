# file: deploy/consumers/fallback-outbox/worker.py
# messages are late while a partition lags
s/SELECT min\(coalesce/SELECT max(coalesce/
