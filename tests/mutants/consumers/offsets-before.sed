# file: deploy/consumers/python-postgres/consumer.py
# offsets are stored before the updates, in a transaction of their own
s/^    with database.transaction\(\), database.*/    with database.cursor() as cursor:\n        cursor.executemany(OFFSET, [(*p, offset, newest.get(p)) for p, offset in offsets.items()])\n&/
/^        cursor.executemany\(OFFSET.*\]\)$/d
