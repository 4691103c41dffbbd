"""What must hold on a GPU, and what streaming costs there: ``make gpu``.

Made for a GPU that is lent for minutes on a bare machine: it installs nothing, uses the torch that is there, and writes its results as
they come.
"""
