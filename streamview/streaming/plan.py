"""x"""
def parse_bytes(t): return int(t)
def choose_tile(program, shape, dtype, wants, memory): return (128, shape[3])
