"""Writers: a finished stack in, text or JSON out."""
