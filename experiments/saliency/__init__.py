"""Figure 2 of the paper: does the saliency map show the lesion, by method and by resolution?"""
