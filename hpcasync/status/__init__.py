"""``hpcasync status`` and ``hpcasync watch``: how runs are getting on, from the files that they write."""
