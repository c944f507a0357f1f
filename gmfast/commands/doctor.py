"""`gmfast doctor`."""


def doctor() -> None:
    """Say what was built, and which implementation each operation uses on each device."""
    import gmfast

    print(gmfast.doctor())
