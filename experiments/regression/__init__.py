"""Section 6 of the paper: can networks of low resolution predict a value that shows in fine detail alone?"""
