"""What this machine selects, as a hash that another machine can compare: the digest behind `mrtkern verify`.

problems.py   seeded problems, whole numbers until the last step: the same bits wherever they are made
kinds.py      what is selected from them, through the public functions, as little-endian bytes, and their sha256
data/digest.json of the package   the sha256 of every block, made on one machine and right on all of them
"""
