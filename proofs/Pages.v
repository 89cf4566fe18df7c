(* Layers 13-17: who owns each page of RAM, who maps it, and every way in which that changes.
   Each transition checks everything, then does what cannot fail; what is refused changes nothing.
   Names are those of the Rust specification: src/spec/memory.rs, src/spec/vm_memory.rs. *)
Require Import NArith List Bool.
Require Export Map.
Import ListNotations.
Local Open Scope N_scope.

(* ---- the state -------------------------------------------------------------------------------------------------- *)

(* Owner and state of a page of RAM.
     state          owner   host reaches it   who else reaches it
     Host           host    yes               nobody
     Core           core    no                nobody
     Lent n         host    yes               ordinary VMs and mailboxes, n times in all (1-255)
     Private v g    VM v    no                v, at g
     Shared v g n   VM v    yes               v, at g; shared n times (1-255)                                        *)
Inductive PageState :=
| Host
| Core
| Lent (times : N)
| Private (vm gfn : N)
| Shared (vm gfn times : N).

Definition host_may_access (st : PageState) : bool :=
  match st with Host | Lent _ | Shared _ _ _ => true | Core | Private _ _ => false end.

(* What a VM has at a gfn: a page of RAM, or a page of device registers. *)
Inductive Leaf := Ram (pfn : N) | Window (pfn : N).

Inductive VmKind := Protected | Ordinary.

(* A VM, as far as memory is concerned. *)
Record Vm := mkVm {
  kind : VmKind;
  size : N;             (* pages of its address space *)
  table : Map Leaf;     (* its address space *)
  cut : bool;           (* its memory is on its way back to the host *)
  given : list N;       (* root and pool: pages that the core uses for it *)
}.

Record State := mkState {
  ram : list (N * N);       (* banks: first page, pages *)
  windows : list (N * N);   (* device registers *)
  ia_bits : N;              (* bits of the machine's addresses *)
  pages : Map PageState;    (* pages that are not in state Host *)
  own : Map unit;           (* pages that the core took for itself *)
  host : Map unit;          (* what the host's table maps; always to itself *)
  vms : Map Vm;
  mailboxes : Map N;        (* how often each page is held as a mailbox *)
  contents : Map N;         (* what stands in pages that were written; in others, what stood there at boot *)
}.

Definition boot (ram windows : list (N * N)) (ia_bits : N) : State :=
  mkState ram windows ia_bits empty empty empty empty empty empty.

Inductive Denied :=
| NotDescribed | PageZero | NotOwner | InUse | Occupied | NoSuchVm | WrongKind | Misaligned | OutOfRange | Busy.

Inductive Result (E A : Type) := Done (a : A) | Refused (why : E).
Arguments Done {E A} a.
Arguments Refused {E A} why.

Notation "'let!' x ':=' r 'in' k" := (match r with Done x => k | Refused why => Refused why end)
  (at level 200, x name, r at level 100, k at level 200).
Notation "'check' c 'else' e 'in' k" := (if c then k else Refused e)
  (at level 200, c at level 100, e at level 100, k at level 200).

(* ---- reading and writing it ------------------------------------------------------------------------------------- *)

Definition within (p : N) (bank : N * N) : bool := (fst bank <=? p) && (p <? fst bank + snd bank).
Definition is_ram (s : State) (p : N) : bool := existsb (within p) (ram s).
Definition is_window (s : State) (p : N) : bool := existsb (within p) (windows s).

Definition state (s : State) (p : N) : PageState := match get (pages s) p with Some st => st | None => Host end.
Definition held (s : State) (p : N) : N := match get (mailboxes s) p with Some n => n | None => 0 end.

Definition with_pages s x := mkState (ram s) (windows s) (ia_bits s) x (own s) (host s) (vms s) (mailboxes s) (contents s).
Definition with_own s x := mkState (ram s) (windows s) (ia_bits s) (pages s) x (host s) (vms s) (mailboxes s) (contents s).
Definition with_host s x := mkState (ram s) (windows s) (ia_bits s) (pages s) (own s) x (vms s) (mailboxes s) (contents s).
Definition with_vms s x := mkState (ram s) (windows s) (ia_bits s) (pages s) (own s) (host s) x (mailboxes s) (contents s).
Definition with_mailboxes s x := mkState (ram s) (windows s) (ia_bits s) (pages s) (own s) (host s) (vms s) x (contents s).
Definition with_contents s x := mkState (ram s) (windows s) (ia_bits s) (pages s) (own s) (host s) (vms s) (mailboxes s) x.

Definition set_pfn_state s p st :=
  with_pages s (match st with Host => remove (pages s) p | _ => set (pages s) p st end).
Definition clear_pfn_host s p := with_host s (remove (host s) p).
Definition set_vm s v vm := with_vms s (set (vms s) v vm).
Definition write s p value := with_contents s (set (contents s) p value).
Definition scrub s p := write s p 0.

Definition with_table vm t := mkVm (kind vm) (size vm) t (cut vm) (given vm).
Definition with_given vm g := mkVm (kind vm) (size vm) (table vm) (cut vm) g.
Definition with_cut vm := mkVm (kind vm) (size vm) (table vm) true (given vm).

(* ---- checks ----------------------------------------------------------------------------------------------------- *)

(* Plainly the host's: RAM, neither lent nor anybody's, not page 0. *)
Definition expect_host (s : State) (p : N) : Result Denied unit :=
  if p =? 0 then Refused PageZero else
  check is_ram s p else NotDescribed in
  match state s p with Host => Done tt | Lent _ => Refused InUse | _ => Refused NotOwner end.

(* The host's, and may be lent once more. *)
Definition may_lend (s : State) (p : N) : Result Denied unit :=
  if p =? 0 then Refused PageZero else
  check is_ram s p else NotDescribed in
  match state s p with
  | Host => Done tt
  | Lent n => check n <? 255 else InUse in Done tt
  | _ => Refused NotOwner
  end.

Definition live (s : State) (v : N) : Result Denied Vm :=
  match get (vms s) v with
  | None => Refused NoSuchVm
  | Some vm => if cut vm then Refused Busy else Done vm
  end.

Definition same_kind (a b : VmKind) : bool :=
  match a, b with Protected, Protected | Ordinary, Ordinary => true | _, _ => false end.

Definition of_kind (s : State) (v : N) (k : VmKind) : Result Denied Vm :=
  let! vm := live s v in check same_kind (kind vm) k else WrongKind in Done vm.

(* The VM's address space has a place there, and nothing is mapped. *)
Definition prepare (vm : Vm) (gfn : N) : Result Denied unit :=
  check gfn <? size vm else OutOfRange in
  match get (table vm) gfn with Some _ => Refused Occupied | None => Done tt end.

(* ---- the host's table ------------------------------------------------------------------------------------------- *)

(* The host touched the page: mapped if it is its own, or shown to it, or a device's. *)
Definition map_page_host (s : State) (p : N) : Result Denied State :=
  if is_ram s p then
    check host_may_access (state s p) else NotOwner in Done (with_host s (set (host s) p tt))
  else
    check is_window s p else NotDescribed in Done (with_host s (set (host s) p tt)).

(* The core may forget what the host mapped, at any time: it is mapped again when it is touched. *)
Definition forget_page_host (s : State) (p : N) : State := clear_pfn_host s p.

Definition host_store (s : State) (p value : N) : Result Denied State :=
  let! s' := map_page_host s p in Done (if is_ram s p then write s' p value else s').

(* ---- host <-> core ---------------------------------------------------------------------------------------------- *)

Definition assign_page_to_core (s : State) (p : N) : Result Denied State :=
  let! _ := expect_host s p in
  Done (with_own (set_pfn_state (clear_pfn_host s p) p Core) (set (own s) p tt)).

Definition return_page_to_host (s : State) (p : N) : Result Denied State :=
  check is_ram s p else NotDescribed in
  match get (own s) p with
  | None => Refused NotOwner
  | Some _ => Done (with_own (set_pfn_state (scrub s p) p Host) (remove (own s) p))
  end.

(* ---- a VM comes: its root, then its pool ------------------------------------------------------------------------ *)

Definition donate_pool_page (s : State) (v p : N) : Result Denied State :=
  let! vm := live s v in
  let! _ := expect_host s p in
  let s1 := set_pfn_state (clear_pfn_host s p) p Core in
  let s2 := with_contents s1 (remove (contents s) p) in
  Done (set_vm s2 v (with_given vm (p :: given vm))).

Fixpoint donate_pages (s : State) (v : N) (l : list N) : Result Denied State :=
  match l with
  | [] => Done s
  | p :: rest => let! s' := donate_pool_page s v p in donate_pages s' v rest
  end.

Definition root_pages (bits : N) : N := if (39 <? bits) && (bits <=? 43) then 2 ^ (bits - 39) else 1.
Definition run (p n : N) : list N := map (fun k => p + N.of_nat k) (seq 0 (N.to_nat n)).

Definition register_vm_table (s : State) (v : N) (k : VmKind) (bits root : N) : Result Denied State :=
  check (1 <=? v) && (v <=? 127) else NoSuchVm in
  match get (vms s) v with
  | Some _ => Refused InUse
  | None =>
    check (32 <=? bits) && (bits <=? ia_bits s) else OutOfRange in
    check root mod root_pages bits =? 0 else Misaligned in
    donate_pages (set_vm s v (mkVm k (2 ^ (bits - 12)) empty false [])) v (run root (root_pages bits))
  end.

(* ---- protected VMs: pages that become their own, and that they share -------------------------------------------- *)

(* The host's page becomes the VM's own at [gfn]: zero, or as the host left it (an image, checked later). *)
Definition assign (s : State) (v gfn p : N) (zero : bool) : Result Denied State :=
  let! vm := of_kind s v Protected in
  let! _ := expect_host s p in
  let! _ := prepare vm gfn in
  let s1 := set_pfn_state (clear_pfn_host s p) p (Private v gfn) in
  let s2 := if zero then scrub s1 p else s1 in
  Done (set_vm s2 v (with_table vm (set (table vm) gfn (Ram p)))).

(* The VM's own page at [gfn], and how often it is shared. *)
Definition own_page (s : State) (v gfn : N) : Result Denied (N * N) :=
  let! vm := of_kind s v Protected in
  match get (table vm) gfn with
  | Some (Ram p) =>
    match state s p with
    | Private _ _ => Done (p, 0)
    | Shared _ _ n => Done (p, n)
    | _ => Refused NotOwner
    end
  | _ => Refused NotOwner
  end.

Definition grant_vm_page (s : State) (v gfn : N) : Result Denied State :=
  let! found := own_page s v gfn in
  check snd found <? 255 else InUse in
  Done (set_pfn_state s (fst found) (Shared v gfn (snd found + 1))).

Definition revoke_vm_page (s : State) (v gfn : N) : Result Denied State :=
  let! found := own_page s v gfn in
  if snd found =? 0 then Refused NotOwner else
  if snd found =? 1 then Done (set_pfn_state (clear_pfn_host s (fst found)) (fst found) (Private v gfn))
  else Done (set_pfn_state s (fst found) (Shared v gfn (snd found - 1))).

(* ---- the host's pages that it lends: to ordinary VMs, and as mailboxes ------------------------------------------ *)

Definition lend_once_more s p :=
  set_pfn_state s p (match state s p with Lent n => Lent (n + 1) | _ => Lent 1 end).
Definition lend_once_less s p :=
  match state s p with
  | Lent n => set_pfn_state s p (if n =? 1 then Host else Lent (n - 1))
  | _ => s
  end.

Definition hold_mailbox (s : State) (p : N) : Result Denied State :=
  let! _ := may_lend s p in
  Done (with_mailboxes (lend_once_more s p) (set (mailboxes s) p (held s p + 1))).

(* By one who holds it. *)
Definition drop_mailbox (s : State) (p : N) : Result Denied State :=
  check is_ram s p else NotDescribed in
  if held s p =? 0 then Refused NotOwner else
  let left := held s p - 1 in
  Done (with_mailboxes (lend_once_less s p)
         (if left =? 0 then remove (mailboxes s) p else set (mailboxes s) p left)).

Definition lend (s : State) (v gfn p : N) : Result Denied State :=
  let! vm := of_kind s v Ordinary in
  let! _ := may_lend s p in
  let! _ := prepare vm gfn in
  Done (set_vm (lend_once_more s p) v (with_table vm (set (table vm) gfn (Ram p)))).

(* What is lent at [gfn], if anything is, is the VM's no more. *)
Definition take_back (s : State) (v gfn : N) : Result Denied State :=
  let! vm := of_kind s v Ordinary in
  match get (table vm) gfn with
  | Some (Ram p) => Done (set_vm (lend_once_less s p) v (with_table vm (remove (table vm) gfn)))
  | _ => Done s
  end.

Definition map_vm_io (s : State) (v gfn p : N) : Result Denied State :=
  let! vm := live s v in
  if is_ram s p then Refused NotOwner else
  let! _ := prepare vm gfn in
  Done (set_vm s v (with_table vm (set (table vm) gfn (Window p)))).

(* ---- a VM goes: its memory, then root and pool ------------------------------------------------------------------ *)

Definition cut_vm (s : State) (v : N) : State :=
  match get (vms s) v with Some vm => set_vm s v (with_cut vm) | None => s end.

(* What stands at [gfn] goes back to the host: zero, if it was the VM's own. *)
Definition clear_vm_page (s : State) (v gfn : N) : State :=
  match get (vms s) v with
  | None => s
  | Some vm =>
    let s1 := set_vm s v (with_table (with_cut vm) (remove (table vm) gfn)) in
    match get (table vm) gfn, kind vm with
    | Some (Ram p), Protected => set_pfn_state (scrub s1 p) p Host
    | Some (Ram p), Ordinary => lend_once_less s1 p
    | _, _ => s1
    end
  end.

Definition clear_vm_range (s : State) (v : N) : State :=
  match get (vms s) v with
  | None => s
  | Some vm => fold_left (fun s e => clear_vm_page s v (fst e)) (entries (table vm)) (cut_vm s v)
  end.

(* One page of root and pool goes back, zero. *)
Definition release (s : State) (v : N) : State :=
  match get (vms s) v with
  | Some vm =>
    match given vm with
    | p :: rest => set_vm (set_pfn_state (scrub s p) p Host) v (with_given vm rest)
    | [] => s
    end
  | None => s
  end.

Fixpoint release_all (n : nat) (s : State) (v : N) : State :=
  match n with O => s | S more => release_all more (release s v) v end.

Definition free_vm_table (s : State) (v : N) : Result Denied State :=
  match get (vms s) v with
  | None => Refused NoSuchVm
  | Some vm =>
    check is_empty (table vm) else Busy in
    let s' := release_all (length (given vm)) s v in
    Done (with_vms s' (remove (vms s') v))
  end.

(* ---- what a VM does by itself ----------------------------------------------------------------------------------- *)

Definition vm_store (s : State) (v gfn value : N) : Result Denied State :=
  let! vm := live s v in
  match get (table vm) gfn with Some (Ram p) => Done (write s p value) | _ => Refused NotOwner end.

(* ---- every step --------------------------------------------------------------------------------------------------- *)

Inductive Op :=
| MapPageHost (p : N) | ForgetPageHost (p : N) | HostStore (p value : N)
| AssignPageToCore (p : N) | ReturnPageToHost (p : N)
| RegisterVmTable (v : N) (k : VmKind) (bits root : N) | DonatePoolPage (v p : N)
| Assign (v gfn p : N) (zero : bool) | GrantVmPage (v gfn : N) | RevokeVmPage (v gfn : N)
| HoldMailbox (p : N) | DropMailbox (p : N) | Lend (v gfn p : N) | TakeBack (v gfn : N) | MapVmIo (v gfn p : N)
| CutVm (v : N) | ClearVmPage (v gfn : N) | ClearVmRange (v : N) | FreeVmTable (v : N)
| VmStore (v gfn value : N).

Definition perform (s : State) (op : Op) : Result Denied State :=
  match op with
  | MapPageHost p => map_page_host s p
  | ForgetPageHost p => Done (forget_page_host s p)
  | HostStore p value => host_store s p value
  | AssignPageToCore p => assign_page_to_core s p
  | ReturnPageToHost p => return_page_to_host s p
  | RegisterVmTable v k bits root => register_vm_table s v k bits root
  | DonatePoolPage v p => donate_pool_page s v p
  | Assign v gfn p zero => assign s v gfn p zero
  | GrantVmPage v gfn => grant_vm_page s v gfn
  | RevokeVmPage v gfn => revoke_vm_page s v gfn
  | HoldMailbox p => hold_mailbox s p
  | DropMailbox p => drop_mailbox s p
  | Lend v gfn p => lend s v gfn p
  | TakeBack v gfn => take_back s v gfn
  | MapVmIo v gfn p => map_vm_io s v gfn p
  | CutVm v => Done (cut_vm s v)
  | ClearVmPage v gfn => Done (clear_vm_page s v gfn)
  | ClearVmRange v => Done (clear_vm_range s v)
  | FreeVmTable v => free_vm_table s v
  | VmStore v gfn value => vm_store s v gfn value
  end.

(* What is refused changes nothing. *)
Definition page_step (s : State) (op : Op) : State := match perform s op with Done s' => s' | Refused _ => s end.
