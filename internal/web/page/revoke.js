// The dialog that revokes a key, once its ID has been entered.

import { ask } from "./shared.js";

const $ = (id) => document.getElementById(id);

/** revoking lets the button open the dialog. done is called when the key is revoked. */
export function revoking(id, address, done) {
  const dialog = $("revoke-dialog");
  $("revoke-id").textContent = id;
  $("revoke").addEventListener("click", () => {
    $("revoke-form").reset();
    $("revoke-problem").hidden = true;
    $("really").disabled = true;
    dialog.showModal();
    $("reason").focus();
  });
  $("cancel").addEventListener("click", () => dialog.close());
  $("confirm").addEventListener("input", () => ($("really").disabled = $("confirm").value.trim() !== id));
  $("revoke-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("really").disabled = true;
    try {
      const reason = $("reason").value.trim();
      await ask(`${address}/revoke`, { method: "POST", body: reason ? { reason } : {} });
    } catch (trouble) {
      $("revoke-problem").textContent = trouble.message;
      $("revoke-problem").hidden = false;
      $("really").disabled = false;
      return;
    }
    dialog.close();
    $("key-title").focus(); // the button is not there any more
    $("announcement").textContent = `Key ${id} is revoked.`;
    done();
  });
}
