# file: deploy/consumers/python-postgres/consumer.py
# offsets are stored before the updates, in a transaction of their own
s/^    with database.transaction\(\), database.*/    with database.cursor() as cursor:\n        cursor.executemany(OFFSET, [(*partition, offset) for partition, offset in offsets.items()])\n&/
/^        cursor.executemany\(OFFSET.*\]\)$/d
