// The tau slider: the stored discrepancies are split again at once, and the address keeps what is shown.

const slider = document.getElementById("tau");
const counts = JSON.parse(document.getElementById("discrepancies").textContent);

function show() {
  const tau = Number(slider.value);
  const total = counts.reduce((sum, [, n]) => sum + n, 0);
  const hard = counts.reduce((sum, [d, n]) => sum + (d >= tau ? n : 0), 0);
  const told = { tau: String(tau), hard: hard.toLocaleString("en"), easy: (total - hard).toLocaleString("en"), share: `${((100 * hard) / Math.max(total, 1)).toFixed(1)} %` };
  for (const [name, text] of Object.entries(told)) document.getElementById(`split-${name}`).textContent = text;
  document.getElementById("split-bar-hard").style.width = told.share.replace(" ", "");
  for (const field of document.querySelectorAll("input[type=hidden][name=tau]")) field.value = tau;
  for (const [id, end] of [["open-hard", "d_from"], ["open-easy", "d_to"]]) {
    const link = document.getElementById(id), target = new URL(link.href);
    target.searchParams.set(end, tau);
    link.href = target;
  }
  const address = new URL(location.href);
  address.searchParams.set("tau", tau);
  history.replaceState(history.state, "", address);
}

slider?.addEventListener("input", show);
