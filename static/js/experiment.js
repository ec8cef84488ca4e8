// Compare is there once two runs are ticked; its address is the short form ?runs=1,2.

const form = document.getElementById("compare-form");

function ticked() {
  return [...form.querySelectorAll("input[name=runs]:checked")].map((box) => box.value);
}

function count() {
  form.querySelector("[data-compare]").disabled = ticked().length < 2;
}

form?.addEventListener("change", count);
form?.addEventListener("submit", (event) => {
  event.preventDefault();
  location.href = `${form.action}?runs=${ticked().join(",")}`;
});
if (form) count();
