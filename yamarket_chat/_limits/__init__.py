"""How much may be sent now, and which call goes next."""
