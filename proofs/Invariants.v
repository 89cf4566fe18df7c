(* What must always hold of pages and tables. Numbers are those of docs/assurance.md (K 6.1 and 6.4).
   That every transition keeps it: PagesProofs.v. *)
Require Import NArith List.
Require Import Pages.
Import ListNotations.
Local Open Scope N_scope.

(* ---- who holds a page ------------------------------------------------------------------------------------------- *)

Definition leaf_is (p : N) (l : Leaf) : N := match l with Ram q => if q =? p then 1 else 0 | Window _ => 0 end.

(* In how many places an ordinary VM has the page. *)
Definition vm_loans (p : N) (vm : Vm) : N :=
  match kind vm with Ordinary => total (leaf_is p) (table vm) | Protected => 0 end.

(* How often the page is lent: as a mailbox, and to ordinary VMs. *)
Definition loans (s : State) (p : N) : N := held s p + total (vm_loans p) (vms s).

Fixpoint count (p : N) (l : list N) : N :=
  match l with [] => 0 | q :: rest => (if q =? p then 1 else 0) + count p rest end.
Definition vm_claims (p : N) (vm : Vm) : N := count p (given vm).
Definition owned (s : State) (p : N) : N := match get (own s) p with Some _ => 1 | None => 0 end.

(* How often the page is the core's: for itself, and as root or pool of a VM. *)
Definition claims (s : State) (p : N) : N := owned s p + total (vm_claims p) (vms s).

(* What the record of a page says about that. *)
Definition lent_times (st : PageState) : N := match st with Lent n => n | _ => 0 end.
Definition core_times (st : PageState) : N := match st with Core => 1 | _ => 0 end.
Definition times_ok (st : PageState) : Prop :=
  match st with Lent n | Shared _ _ n => 1 <= n <= 255 | _ => True end.
Definition belongs (st : PageState) (v g : N) : Prop :=
  match st with Private a b | Shared a b _ => a = v /\ b = g | _ => False end.

(* ---- the invariants --------------------------------------------------------------------------------------------- *)

Record PagesInv (s : State) : Prop := {
  (* 4: page 0 is never given away. *)
  page_zero : state s 0 = Host;
  (* A14: what is no RAM has no owner. *)
  ram_only : forall p, state s p <> Host -> is_ram s p = true;
  (* 5, A1: the host's table leads to what the host may reach, and nowhere else. *)
  host_iso : forall p, get (host s) p <> None ->
    if is_ram s p then host_may_access (state s p) = true else is_window s p = true;
  (* j: a page is lent exactly as often as its record says, whoever lent it. *)
  lent_count : forall p, loans s p = lent_times (state s p);
  (* 15, b: what the core holds is the core's, and held once. *)
  core_count : forall p, claims s p = core_times (state s p);
  counts_ok : forall p, times_ok (state s p);
  (* 6: what a protected VM's table leads to is that VM's, at that gfn. *)
  vm_iso : forall v vm g p, get (vms s) v = Some vm -> kind vm = Protected ->
    get (table vm) g = Some (Ram p) -> belongs (state s p) v g;
  (* a: a VM's page is mapped where its record says. *)
  placed : forall p v g, belongs (state s p) v g ->
    exists vm, get (vms s) v = Some vm /\ kind vm = Protected /\ get (table vm) g = Some (Ram p);
  (* A16: a window is never RAM. *)
  windows_no_ram : forall v vm g p, get (vms s) v = Some vm -> get (table vm) g = Some (Window p) ->
    is_ram s p = false;
  in_size : forall v vm g l, get (vms s) v = Some vm -> get (table vm) g = Some l -> g < size vm;
  (* D8: ids. *)
  vm_ids : forall v vm, get (vms s) v = Some vm -> 1 <= v <= 127;
}.

(* ---- the life of VMs ---------------------------------------------------------------------------------------------- *)

Require Import Lifecycle.

Definition idle (l : Life) : Prop := forall c x, get (vcpus l) c = Some x -> active x = false.

Record LifeInv (s : Lives) : Prop := {
  (* A VM has memory if and only if it lives. *)
  same_ids : forall v, get (lives s) v = None <-> get (vms (memory s)) v = None;
  (* D3, A7, g: memory goes back only from a VM that is off, and none of whose vCPUs runs. *)
  off_first : forall v vm l, get (vms (memory s)) v = Some vm -> get (lives s) v = Some l ->
    cut vm = true -> vm_state l = PowerOff /\ idle l;
  (* D2: a protected VM that may run was checked, every page of every image. *)
  checked : forall v vm l, get (vms (memory s)) v = Some vm -> get (lives s) v = Some l ->
    kind vm = Protected -> vm_state l = Verified -> images l <> [] /\ forallb complete (images l) = true;
  (* Nothing runs before it was checked. *)
  runs_checked : forall v l, get (lives s) v = Some l -> vm_state l = Ready -> idle l;
}.

(* What the life of VMs may do to memory: nothing that is a VM's own doing; and what takes a VM's memory away only while
   the VM is off and none of its vCPUs runs. *)
Definition allowed (s : Lives) (op : Op) : Prop :=
  match op with
  | GrantVmPage _ _ | RevokeVmPage _ _ | VmStore _ _ _ | HostStore _ _ => False
  | CutVm v | ClearVmPage v _ | ClearVmRange v | FreeVmTable v =>
      exists l, get (lives s) v = Some l /\ vm_state l = PowerOff /\ idle l
  | _ => True
  end.
