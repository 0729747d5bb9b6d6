"""What the notebooks show: tables and figures, each with the sentence that sums it up."""
