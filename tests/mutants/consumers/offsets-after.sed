# file: deploy/consumers/python-postgres/consumer.py
# offsets are stored after the updates, in a transaction of their own
s/^        (cursor.executemany\(OFFSET.*)/    with database.cursor() as cursor:\n        \1/
