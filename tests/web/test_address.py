"""Where the web server may listen, and what is said of an address where it cannot."""

import pytest

from lionweb import local


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_an_address_of_this_machine_is_taken(address):
    local.check_address(address)


@pytest.mark.parametrize("address", ["::1", "::", "203.0.113.9", "no-such-host.invalid"])
def test_any_other_is_refused_by_the_setting_it_came_from(address):
    with pytest.raises(local.CannotStart) as refused:
        local.check_address(address)
    assert f"LIONWEB_BIND={address} cannot be listened on" in str(refused.value)
    assert "IPv4" in str(refused.value)
    assert "LIONWEB_PORT" not in str(refused.value)
