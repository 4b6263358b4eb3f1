"""Sans-IO: messages, ticks and facts in, intentions out."""
