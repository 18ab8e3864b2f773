# file: deploy/consumers/python-postgres/consumer.py
# a repetition without a price takes the price away
s/coalesce\(excluded\.\{c\}, u\.\{c\}\)/excluded.{c}/
