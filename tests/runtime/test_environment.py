"""What the system says of its processor."""

import platform

from lgfast.runtime import environment


def test_the_processor_and_its_maker_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    one = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu vme\n"
    environment.CPUINFO.write_text(f"{one}\n{one}")
    assert (environment.cpu_vendor(), environment.cpu_name()) == ("AuthenticAMD", "AMD EPYC 9R14")


def test_a_system_that_does_not_tell_names_the_architecture(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "absent")
    assert (environment.cpu_vendor(), environment.cpu_name()) == ("", platform.machine())
