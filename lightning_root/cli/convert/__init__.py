"""`convert-checkpoint`: optimizer states that load into ROOT, wherever they were saved."""
