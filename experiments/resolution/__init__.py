"""Section 7 of the paper: do networks find small metastases better at higher resolution?"""
