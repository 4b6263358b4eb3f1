"""Operations: check, call, answer or park."""
